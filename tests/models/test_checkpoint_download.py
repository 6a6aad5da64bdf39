"""Pulling a preset from a hub: downloads that break, wrong files, refusals."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from models.checkpoints.files import WeightsProgress
from models.checkpoints.folder import verify
from models.checkpoints.pull import pull
from models.errors import CheckpointError, DownloadFailed
from models.presets import Preset
from tests.models.hub import Hub
from tests.models.pulling import NAMES, WHOLE, Pauses, left
from tests.models.released import released, write_files


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
        pull(preset, tmp_path, accept_licence=True, on_progress=interrupt)
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
        pull(preset, root, accept_licence=True, on_progress=interrupt)
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
