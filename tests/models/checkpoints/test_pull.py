"""Pulling a preset from a hub: what it leaves, downloads that break, wrong files, refusals."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session

from models.checkpoints import pull as pulling
from models.checkpoints.files import WeightsProgress, note_absence, preset_folder
from models.checkpoints.folder import verify
from models.checkpoints.pull import pull
from models.errors import CheckpointError, DiskFull, DownloadFailed, LicenceNotAccepted
from models.presets import PRESETS, Preset, Release
from tests.models.hub import NAMES, WHOLE, Hub, files_in
from tests.models.released import released, write_files


def part_of(root: Path, name: str) -> Path:
    """What is kept of a download."""
    (part,) = (root / ".downloads").glob(f"{name}.*part")
    return part


def test_a_pull_leaves_converted_weights_and_nothing_else(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    seen: list[WeightsProgress] = []
    folder = pull(preset, tmp_path, accept_licence=True, on_progress=seen.append)
    assert folder == tmp_path / "stablesr-512"
    assert files_in(tmp_path) == WHOLE
    record = verify(folder).record
    assert record is not None
    assert preset.release is not None
    assert [(f.name, f.sha256) for f in record.sources] == [
        (f.name, f.sha256) for f in preset.release.files
    ]
    ends = [(now.stage, now.name) for now in seen if now.position == now.total]
    assert ends[:5] == [
        ("download", NAMES[0]),
        ("check", NAMES[0]),
        ("download", NAMES[1]),
        ("check", NAMES[1]),
        ("convert", "model.safetensors"),
    ]


def test_weights_that_are_here_are_not_pulled_again(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    pull(preset, tmp_path, accept_licence=True)
    count = len(hub.requests)
    assert pull(preset, tmp_path, accept_licence=False) == tmp_path / "stablesr-512"
    assert len(hub.requests) == count
    pull(preset, tmp_path, accept_licence=True, again=True, keep=True)
    assert len(hub.requests) == 2 * count
    assert files_in(tmp_path) == sorted([*(f".downloads/{name}" for name in NAMES), *WHOLE])
    # What was kept is checked, and not downloaded again.
    pull(preset, tmp_path, accept_licence=True, again=True)
    assert len(hub.requests) == 2 * count
    assert files_in(tmp_path) == WHOLE


def test_tiny_comes_with_the_package(tmp_path: Path) -> None:
    assert pull(PRESETS["tiny"], tmp_path, accept_licence=False) == preset_folder(PRESETS["tiny"])


def test_nothing_is_asked_of_the_hub_before_the_licence_is_accepted(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    with pytest.raises(LicenceNotAccepted, match=r"S-Lab License 1\.0 .*, https://github"):
        pull(preset, tmp_path, accept_licence=False)
    assert hub.requests == []
    assert files_in(tmp_path) == []


def test_a_disk_without_room_is_told_before_the_download(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(DiskFull, match=r"has 0\.0 GB free, and 0\.0 GB are needed"):
        pull(preset, tmp_path, accept_licence=True)
    assert hub.requests == []


def test_a_disk_that_runs_full_keeps_what_came(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: pulling._Part, chunk: bytes) -> int:
        if self.tell() >= 20_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super(pulling._Part, self).write(chunk)

    with monkeypatch.context() as patch:
        patch.setattr(pulling._Part, "write", write)
        with pytest.raises(DiskFull, match="The disk ran full after 20000 bytes"):
            pull(preset, tmp_path, accept_licence=True)
    pull(preset, tmp_path, accept_licence=True)
    assert hub.starts(NAMES[0]) == [0, 20_000]


def test_files_that_do_not_convert_leave_no_folder(
    hub: Hub, preset: Preset, contents: dict[str, bytes], tmp_path: Path
) -> None:
    assert preset.release is not None
    diffusion, autoencoder = preset.release.files
    swapped = Release(
        replace(autoencoder, name=diffusion.name), replace(diffusion, name=autoencoder.name)
    )
    hub.files = {NAMES[0]: contents[NAMES[1]], NAMES[1]: contents[NAMES[0]]}
    with pytest.raises(CheckpointError, match="swapped"):
        pull(replace(preset, release=swapped), tmp_path, accept_licence=True)
    assert files_in(tmp_path) == sorted(f".downloads/{name}" for name in NAMES)


def test_of_two_pulls_at_once_one_works_and_the_other_waits(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    downloading, waiting = Event(), Event()

    def hold() -> None:
        downloading.set()
        assert waiting.wait(60)

    def second(now: WeightsProgress) -> None:
        assert now.stage == "wait"
        waiting.set()

    hub.before = hold
    folders: list[Path] = []
    first = Thread(target=lambda: folders.append(pull(preset, tmp_path, accept_licence=True)))
    first.start()
    assert downloading.wait(60)
    folders.append(pull(preset, tmp_path, accept_licence=True, on_progress=second))
    first.join()
    assert folders == [tmp_path / "stablesr-512"] * 2
    assert [len(hub.starts(name)) for name in NAMES] == [1, 1]


def test_a_note_of_absence_is_no_reason_not_to_pull(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path))
    note_absence(preset, "no network")
    pull(preset, tmp_path, accept_licence=True)
    assert files_in(tmp_path) == sorted([*WHOLE, "stablesr-512.absent.json"])


def test_a_connection_that_breaks_is_resumed_where_it_broke(
    hub: Hub, preset: Preset, tmp_path: Path, pauses: list[float]
) -> None:
    hub.cuts = [100_000, 2_000_000]
    pull(preset, tmp_path, accept_licence=True)
    assert hub.starts(NAMES[0]) == [0, 100_000, 2_100_000]
    assert len(pauses) == 2
    verify(tmp_path / "stablesr-512")


class Interruption(Exception):
    """Ends a download in the middle."""


def interrupt_pull(preset: Preset, root: Path, name: str = NAMES[1]) -> int:
    """Ends a pull in the middle of a file; how much of it is kept."""

    def interrupt(now: WeightsProgress) -> None:
        if (now.stage, now.name) == ("download", name) and now.position > 20_000:
            raise Interruption

    with pytest.raises(Interruption):
        pull(preset, root, accept_licence=True, on_progress=interrupt)
    return part_of(root, name).stat().st_size


def test_a_download_is_resumed_by_the_next_process(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    size = interrupt_pull(preset, tmp_path, NAMES[0])
    assert len(files_in(tmp_path)) == 1
    assert size > 20_000
    pull(preset, tmp_path, accept_licence=True)
    assert hub.starts(NAMES[0]) == [0, size]
    assert files_in(tmp_path) == WHOLE


def test_a_server_without_ranges_sends_all_of_it_again(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.cuts, hub.ranges = [100_000], False
    pull(preset, tmp_path, accept_licence=True)
    verify(tmp_path / "stablesr-512")


@pytest.mark.parametrize(("more", "starts"), [(b"", []), (b"x", [0])])
def test_a_whole_part_is_taken_and_a_longer_one_is_thrown_away(
    more: bytes,
    starts: list[int],
    hub: Hub,
    preset: Preset,
    contents: dict[str, bytes],
    tmp_path: Path,
) -> None:
    interrupt_pull(preset, tmp_path, NAMES[0])
    part_of(tmp_path, NAMES[0]).write_bytes(contents[NAMES[0]] + more)
    pull(preset, tmp_path, accept_licence=True)
    assert hub.starts(NAMES[0]) == [0, *starts]
    assert files_in(tmp_path) == WHOLE


def test_a_file_with_another_sum_is_removed_and_told(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    damaged = bytearray(hub.files[NAMES[1]])
    damaged[-1] ^= 1
    hub.files[NAMES[1]] = bytes(damaged)
    with pytest.raises(DownloadFailed, match=r"is not the released file: its sha256 is \w+ and sh"):
        pull(preset, tmp_path, accept_licence=True)
    # The other file is right and is kept for the next try.
    assert files_in(tmp_path) == [f".downloads/{NAMES[0]}"]


def test_a_file_of_another_size_is_not_even_downloaded(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.files[NAMES[0]] = b"<html>Sign in</html>"
    with pytest.raises(DownloadFailed, match=r"the server has 20 bytes, and stablesr_000117\.ckpt"):
        pull(preset, tmp_path, accept_licence=True)
    assert files_in(tmp_path) == []


def without_sum(preset: Preset) -> Preset:
    """As the face preset: the sum of its autoencoder is not published."""
    assert preset.release is not None
    autoencoder = replace(preset.release.autoencoder, sha256=None)
    return replace(preset, release=replace(preset.release, autoencoder=autoencoder))


def test_a_file_whose_sum_is_unknown_is_compared_with_what_the_hub_says(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    preset = without_sum(preset)
    interrupt_pull(preset, tmp_path)
    part = part_of(tmp_path, NAMES[1])
    part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(DownloadFailed, match=r"vqgan_cfw_00011\.ckpt .*is not the released file"):
        pull(preset, tmp_path, accept_licence=True)


@pytest.mark.parametrize("sums", [True, False])
def test_a_part_is_not_joined_with_another_revision(
    sums: bool, hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.tells_sum = sums
    root, preset = tmp_path / "weights", without_sum(preset)
    interrupt_pull(preset, root)
    other = write_files(tmp_path, *released(seed=1))[1].read_bytes()
    assert len(other) == len(hub.files[NAMES[1]])
    hub.files[NAMES[1]] = other
    pull(preset, root, accept_licence=True, keep=True)
    assert (root / ".downloads" / NAMES[1]).read_bytes() == other
    assert hub.starts(NAMES[1]) == [0, 0]
    assert files_in(root / ".downloads") == sorted(NAMES)


def test_a_file_without_any_sum_is_checked_by_its_structure(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.tells_sum = False
    pull(without_sum(preset), tmp_path / "a", accept_licence=True)
    verify(tmp_path / "a" / "stablesr-512")
    hub.files[NAMES[1]] = bytes(len(hub.files[NAMES[1]]))
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        pull(without_sum(preset), tmp_path / "b", accept_licence=True)
    assert not (tmp_path / "b" / "stablesr-512").exists()


def test_a_file_of_known_sum_is_resumed_from_a_mirror_that_tells_none(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    size = interrupt_pull(preset, tmp_path)
    hub.tells_sum = False
    pull(preset, tmp_path, accept_licence=True)
    assert hub.starts(NAMES[1]) == [0, size]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, r"asks for a login \(401\): set HF_TOKEN"),
        (403, r"asks for a login \(403\)"),
        (404, r"is not there \(404\): the file was moved or removed"),
        (400, r"the server answers 400"),
    ],
)
def test_a_refusal_is_told_at_once(
    status: int, sentence: str, hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.statuses = [status]
    with pytest.raises(DownloadFailed, match=sentence):
        pull(preset, tmp_path, accept_licence=True)
    assert len(hub.requests) == 1
    assert files_in(tmp_path) == []


def test_a_busy_server_is_asked_again_when_it_says(
    hub: Hub, preset: Preset, tmp_path: Path, pauses: list[float]
) -> None:
    hub.statuses = [429, 503]
    pull(preset, tmp_path, accept_licence=True)
    assert all(7 <= seconds < 9 for seconds in pauses)
    assert len(pauses) == 2


def test_a_server_that_stays_busy_is_left(hub: Hub, preset: Preset, tmp_path: Path) -> None:
    hub.statuses = [429] * 20
    with pytest.raises(DownloadFailed, match=r"the server answers 429"):
        pull(preset, tmp_path, accept_licence=True)
    assert len(hub.requests) < 10


def test_a_server_that_fails_in_the_middle_is_asked_again(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.cuts, hub.before = [100_000], lambda: hub.statuses.append(503) if hub.cuts else None
    pull(preset, tmp_path, accept_licence=True)
    assert hub.starts(NAMES[0]) == [0, 100_000]


def test_without_a_network_the_address_is_told_and_nothing_is_left(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:9/.* could not be downloaded: "):
        pull(preset, tmp_path, accept_licence=True)
    assert files_in(tmp_path) == []


def test_an_endpoint_that_is_no_address_is_told(
    preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    with pytest.raises(DownloadFailed, match=r"huggingface\.co/\S+ is no address"):
        pull(preset, tmp_path, accept_licence=True)


def test_a_proxy_that_does_not_answer_is_told(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("http_proxy", "http://127.0.0.1:9"), ("no_proxy", "")):
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.upper(), value)
    close_session()
    with pytest.raises(DownloadFailed, match="could not be downloaded"):
        pull(preset, tmp_path, accept_licence=True)
    close_session()
    assert hub.requests == []


def test_a_token_goes_to_the_hub_and_not_to_the_host_of_the_bytes(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(preset, tmp_path, accept_licence=True)
    sent = {(r.path.startswith("/bytes/"), r.authorization) for r in hub.requests}
    assert sent == {(False, "Bearer hf_secret"), (True, None)}


def test_every_released_preset_tells_where_its_files_are() -> None:
    releases = {p.name: p.release for p in PRESETS.values() if p.release}
    assert len(releases) == 4
    for name, release in releases.items():
        assert release.repository == "Iceclear/StableSR"
        assert [f.size for f in release.files] == [
            6_310_000_000 if name == "stablesr-face" else 6_480_000_000,
            960_000_000,
        ]
        assert (release.autoencoder.sha256 is None) == (name == "stablesr-face")
        assert (PRESETS[name].native == 768) == (name == "stablesr-768v")
