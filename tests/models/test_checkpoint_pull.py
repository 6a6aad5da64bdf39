"""Pulling a preset from a hub: the licence, downloads that break, wrong files, no room."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from models.checkpoints.absence import Absence
from models.checkpoints.leftovers import clear_leftovers
from models.checkpoints.places import preset_folder
from models.checkpoints.progress import WeightsProgress
from models.checkpoints.pull import pull
from models.checkpoints.verify import verify
from models.checkpoints.writing import folder_aside
from models.errors import CheckpointError, DiskFull, DownloadFailed, LicenceNotAccepted
from models.presets import PRESETS, Preset, Release, ReleasedFile, get_preset
from tests.models.hub import Hub
from tests.models.released import released, write_files

NAMES = "stablesr_000117.ckpt", "vqgan_cfw_00011.ckpt"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    paths = write_files(tmp_path_factory.mktemp("files"), *released())
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture
def hub(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(dict(contents)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


@pytest.fixture
def preset(contents: dict[str, bytes]) -> Preset:
    """stablesr-512, with the sizes and sums of the small files."""
    diffusion, autoencoder = (
        ReleasedFile(name, len(contents[name]), hashlib.sha256(contents[name]).hexdigest())
        for name in NAMES
    )
    return replace(get_preset("stablesr-512"), release=Release(diffusion, autoencoder))


class Pauses(list[float]):
    """Notes how long it was to wait, and does not."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def left(root: Path) -> list[str]:
    """Everything in the root, but for the lock."""
    return sorted(
        str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name != ".lock"
    )


WHOLE = ["stablesr-512/config.json", "stablesr-512/model.safetensors"]


def test_a_pull_leaves_converted_weights_and_nothing_else(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    seen: list[WeightsProgress] = []
    folder = pull(preset, tmp_path, accept_licence=True, progress=seen.append)
    assert folder == tmp_path / "stablesr-512"
    assert left(tmp_path) == WHOLE
    record = verify(folder).record
    assert record is not None
    assert preset.release is not None
    assert [(f.name, f.sha256) for f in record.sources] == [
        (f.name, f.sha256) for f in preset.release.files
    ]
    ends = [(now.stage, now.name) for now in seen if now.done == now.total]
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
    asked = len(hub.requests)
    assert pull(preset, tmp_path, accept_licence=False) == tmp_path / "stablesr-512"
    assert len(hub.requests) == asked
    pull(preset, tmp_path, accept_licence=True, again=True, keep=True)
    assert len(hub.requests) == 2 * asked
    assert left(tmp_path) == sorted([*(f".downloads/{name}" for name in NAMES), *WHOLE])
    # What was kept is checked, and not downloaded again.
    pull(preset, tmp_path, accept_licence=True, again=True)
    assert len(hub.requests) == 2 * asked
    assert left(tmp_path) == WHOLE


def test_tiny_comes_with_the_package(tmp_path: Path) -> None:
    assert pull(PRESETS["tiny"], tmp_path, accept_licence=False) == preset_folder(PRESETS["tiny"])


def test_nothing_is_asked_of_the_hub_before_the_licence_is_accepted(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    with pytest.raises(LicenceNotAccepted, match=r"S-Lab License 1\.0 .*, https://github"):
        pull(preset, tmp_path, accept_licence=False)
    assert hub.requests == []
    assert left(tmp_path) == []


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.cuts = [100_000, 2_000_000]
    pauses = Pauses()
    pull(preset, tmp_path, accept_licence=True, pause=pauses)
    assert hub.starts(NAMES[0]) == [0, 100_000, 2_100_000]
    assert len(pauses) == 2
    verify(tmp_path / "stablesr-512")


def test_a_download_is_taken_up_by_the_next_process(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    def interrupt(now: WeightsProgress) -> None:
        if now.done > 3_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(preset, tmp_path, accept_licence=True, progress=interrupt)
    kept, tag = left(tmp_path)
    assert (kept, tag) == (f".downloads/{NAMES[0]}.part", f".downloads/{NAMES[0]}.part.etag")
    size = (tmp_path / kept).stat().st_size
    assert size > 2_000_000
    pull(preset, tmp_path, accept_licence=True)
    assert hub.starts(NAMES[0]) == [0, size]
    assert left(tmp_path) == WHOLE


def test_a_server_without_ranges_sends_all_of_it_again(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.cuts, hub.ranges = [100_000], False
    pull(preset, tmp_path, accept_licence=True, pause=Pauses())
    verify(tmp_path / "stablesr-512")


def test_a_whole_download_that_was_not_renamed_is_taken(
    hub: Hub, preset: Preset, contents: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / ".downloads").mkdir()
    (tmp_path / ".downloads" / f"{NAMES[0]}.part").write_bytes(contents[NAMES[0]])
    pull(preset, tmp_path, accept_licence=True)
    assert hub.starts(NAMES[0]) == [len(contents[NAMES[0]])]
    assert left(tmp_path) == WHOLE


def test_a_part_that_is_longer_than_the_file_is_thrown_away(
    hub: Hub, preset: Preset, contents: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / ".downloads").mkdir()
    (tmp_path / ".downloads" / f"{NAMES[0]}.part").write_bytes(contents[NAMES[0]] + b"x")
    pull(preset, tmp_path, accept_licence=True, pause=Pauses())
    assert hub.starts(NAMES[0]) == [len(contents[NAMES[0]]) + 1, 0]


def test_a_file_with_another_sum_is_removed_and_told(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    changed = bytearray(hub.files[NAMES[1]])
    changed[-1] ^= 1
    hub.files[NAMES[1]] = bytes(changed)
    with pytest.raises(DownloadFailed, match=r"is not the released file: its sha256 is \w+ and sh"):
        pull(preset, tmp_path, accept_licence=True)
    # The other file is right and is kept for the next try.
    assert left(tmp_path) == [f".downloads/{NAMES[0]}"]


def test_a_file_of_another_size_is_not_even_downloaded(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.files[NAMES[0]] = b"<html>Sign in</html>"
    with pytest.raises(DownloadFailed, match=r"the server has 20 bytes, and stablesr_000117\.ckpt"):
        pull(preset, tmp_path, accept_licence=True)
    assert left(tmp_path) == []


def unknown_sum(preset: Preset) -> Preset:
    """As the face preset: nobody has published the sum of its autoencoder."""
    assert preset.release is not None
    unknown = replace(preset.release.autoencoder, sha256=None)
    return replace(preset, release=replace(preset.release, autoencoder=unknown))


def test_a_file_whose_sum_is_unknown_is_compared_with_what_the_hub_says(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    pull(unknown_sum(preset), tmp_path / "a", accept_licence=True)
    part = tmp_path / "b" / ".downloads" / f"{NAMES[1]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    tag = hashlib.md5(hub.files[NAMES[1]]).hexdigest()
    part.with_name(f"{part.name}.etag").write_text(f'"{tag}"')
    with pytest.raises(DownloadFailed, match=r"vqgan_cfw_00011\.ckpt .*is not the released file"):
        pull(unknown_sum(preset), tmp_path / "b", accept_licence=True)


def test_a_file_whose_sum_nobody_tells_is_checked_by_its_structure(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.tells_sum = False
    pull(unknown_sum(preset), tmp_path / "a", accept_licence=True)
    verify(tmp_path / "a" / "stablesr-512")
    hub.files[NAMES[1]] = bytes(len(hub.files[NAMES[1]]))
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        pull(unknown_sum(preset), tmp_path / "b", accept_licence=True)
    assert not (tmp_path / "b" / "stablesr-512").exists()


class Interrupted(Exception):
    """Ends a download in the middle."""


def interrupted(preset: Preset, root: Path) -> int:
    """Ends a pull in the middle of the autoencoder's file; how much of it is kept."""

    def interrupt(now: WeightsProgress) -> None:
        if (now.stage, now.name) == ("download", NAMES[1]) and now.done > 10_000:
            raise Interrupted

    with pytest.raises(Interrupted):
        pull(preset, root, accept_licence=True, progress=interrupt)
    return (root / ".downloads" / f"{NAMES[1]}.part").stat().st_size


def other_revision(hub: Hub, folder: Path) -> None:
    """Another file of the same size and structure under the name of the autoencoder."""
    other = write_files(folder, *released(seed=1))[1].read_bytes()
    assert len(other) == len(hub.files[NAMES[1]])
    assert other != hub.files[NAMES[1]]
    hub.files[NAMES[1]] = other


@pytest.mark.parametrize("conditions", [True, False])
def test_a_part_is_not_joined_with_another_revision(
    conditions: bool, hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.tells_sum, hub.conditions = False, conditions
    root, preset = tmp_path / "weights", unknown_sum(preset)
    size = interrupted(preset, root)
    other_revision(hub, tmp_path)
    pull(preset, root, accept_licence=True, pause=Pauses(), keep=True)
    assert (root / ".downloads" / NAMES[1]).read_bytes() == hub.files[NAMES[1]]
    assert hub.starts(NAMES[1]) == ([0, size] if conditions else [0, size, 0])
    assert left(root / ".downloads") == sorted(NAMES)


@pytest.mark.parametrize("tags", [True, False])
def test_a_part_of_a_file_of_unknown_sum_is_taken_up_if_its_tag_is_known(
    tags: bool, hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.tells_sum, hub.tags = False, tags
    size = interrupted(unknown_sum(preset), tmp_path)
    pull(unknown_sum(preset), tmp_path, accept_licence=True)
    assert hub.starts(NAMES[1]) == [0, size if tags else 0]
    assert left(tmp_path) == WHOLE


def test_a_file_of_known_sum_is_taken_up_from_a_mirror_with_other_tags(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    size = interrupted(preset, tmp_path)
    (tmp_path / ".downloads" / f"{NAMES[1]}.part.etag").write_text('"of another server"')
    pull(preset, tmp_path, accept_licence=True)
    assert hub.starts(NAMES[1]) == [0, size]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, r"asks for a login \(401\): set HF_TOKEN"),
        (403, r"asks for a login \(403\)"),
        (404, r"is not there \(404\): the file was moved or removed"),
        (400, r"the server answers 400"),
    ],
)
def test_a_refusal_is_told_at_once(
    status: int, said: str, hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.statuses = [status]
    with pytest.raises(DownloadFailed, match=said):
        pull(preset, tmp_path, accept_licence=True)
    assert len(hub.requests) == 1
    assert left(tmp_path) == []


def test_a_busy_server_is_asked_again_when_it_says(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    hub.statuses = [429, 503]
    pauses = Pauses()
    pull(preset, tmp_path, accept_licence=True, pause=pauses)
    assert pauses == [7, 7]


def test_a_server_that_stays_busy_is_left(hub: Hub, preset: Preset, tmp_path: Path) -> None:
    hub.statuses = [429] * 20
    with pytest.raises(DownloadFailed, match=r"too many requests \(429\)"):
        pull(preset, tmp_path, accept_licence=True, pause=Pauses())
    assert len(hub.requests) == 5


def test_without_a_network_the_address_is_told_and_nothing_is_left(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    pauses = Pauses()
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:9/.* the connection cannot be reached"):
        pull(preset, tmp_path, accept_licence=True, pause=pauses)
    assert pauses == [2, 4, 8, 16]
    assert left(tmp_path) == []


def test_an_endpoint_that_is_no_address_is_told(
    preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    with pytest.raises(DownloadFailed, match=r"huggingface\.co/\S+ is no address"):
        pull(preset, tmp_path, accept_licence=True)


def test_a_proxy_that_does_not_answer_is_told(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        pull(preset, tmp_path, accept_licence=True, pause=Pauses())
    assert hub.requests == []


def test_a_token_goes_to_the_hub_and_not_to_the_host_of_the_bytes(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(preset, tmp_path, accept_licence=True)
    sent = {(r.path.startswith("/bytes/"), r.authorization) for r in hub.requests}
    assert sent == {(False, "Bearer hf_secret"), (True, None)}


def test_a_disk_without_room_is_told_before_the_download(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(DiskFull, match=r"has 0\.0 GB free, and 0\.0 GB are needed"):
        pull(preset, tmp_path, accept_licence=True)
    assert hub.requests == []


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
    assert left(tmp_path) == sorted(f".downloads/{name}" for name in NAMES)


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
    folders.append(pull(preset, tmp_path, accept_licence=True, progress=second))
    first.join()
    assert folders == [tmp_path / "stablesr-512"] * 2
    assert [len(hub.starts(name)) for name in NAMES] == [1, 1]


def test_what_a_killed_process_left_is_cleared_away(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    leftover = tmp_path / ".stablesr-512.1.part"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(bytes(10))
    pull(preset, tmp_path, accept_licence=True)
    assert left(tmp_path) == WHOLE


def killed_in_between(folder: Path) -> None:
    """Replaces a folder in a process of its own, which is killed between the two renames."""
    child = os.fork()
    if child == 0:
        rename = Path.rename

        def once(self: Path, target: Path) -> None:
            rename(self, target)
            os.kill(os.getpid(), signal.SIGKILL)

        Path.rename = once  # type: ignore[method-assign, assignment]  # of a process that ends now
        with folder_aside(folder) as aside:
            (aside / "config.json").write_text("new")
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_weights_that_a_killed_process_had_put_aside_are_back(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    folder = pull(preset, tmp_path, accept_licence=True)
    whole, asked = (folder / "model.safetensors").read_bytes(), len(hub.requests)
    killed_in_between(folder)
    assert not folder.exists()
    assert len([p for p in tmp_path.iterdir() if p.name.endswith((".old", ".part"))]) == 2
    assert pull(preset, tmp_path, accept_licence=False) == folder
    assert len(hub.requests) == asked
    assert (folder / "model.safetensors").read_bytes() == whole
    assert left(tmp_path) == WHOLE


def test_a_folder_that_was_replaced_is_removed_and_not_put_back(tmp_path: Path) -> None:
    folder, old = tmp_path / "a", tmp_path / ".a.1.old"
    for path, text in ((folder, "new"), (old, "old")):
        path.mkdir()
        (path / "config.json").write_text(text)
    clear_leftovers(folder)
    assert left(tmp_path) == ["a/config.json"]
    assert (folder / "config.json").read_text() == "new"


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with folder_aside(folder) as aside:
        (aside / "config.json").write_text("new")
        clear_leftovers(folder)
        assert (aside / "config.json").is_file()
    assert left(tmp_path) == ["a/config.json"]


def test_every_released_preset_tells_where_its_files_are_and_under_what_licence() -> None:
    released_presets = [p for p in PRESETS.values() if not p.embedded]
    assert len(released_presets) == 4
    for preset in released_presets:
        release = preset.release
        assert release is not None
        assert release.repository == "Iceclear/StableSR"
        assert [f.size for f in release.files] == [
            6_310_000_000 if preset.name == "stablesr-face" else 6_480_000_000,
            960_000_000,
        ]
        assert (preset.native == 768) == (preset.name == "stablesr-768v")
    assert {p.name for p in released_presets if p.release and not p.release.autoencoder.sha256} == {
        "stablesr-face"
    }


def test_both_sides_tell_the_same_licence() -> None:
    from jobs.presets import PRESETS as CHOICES

    for name, choice in CHOICES.items():
        release = PRESETS[name].release
        if release is not None:
            assert (choice.licence, choice.licence_url) == (release.licence, release.licence_url)


def test_a_note_of_absence_is_no_reason_not_to_pull(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path))
    Absence.note(preset, "no network")
    pull(preset, tmp_path, accept_licence=True)
    assert left(tmp_path) == sorted([*WHOLE, "stablesr-512.absent.json"])
