"""Blobs in a real folder: whole or not at all, and errors in sentences."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import BlobNotFound, StoreUnavailable
from jobs.settings import Settings
from jobs.store import BlobStore, input_key, result_key

KEY = input_key("abc")


def files(settings: Settings) -> list[str]:
    root = settings.blob_root
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def pieces() -> Iterator[bytes]:
    yield b"one "
    yield b"two"


def test_every_kind_of_source_is_stored_whole(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a path")
    store.put(KEY, tmp_path / "file")
    assert store.get(KEY) == b"from a path"
    store.put(KEY, io.BytesIO(b"from a file"))
    assert store.get(KEY) == b"from a file"
    store.put(KEY, pieces())
    assert store.get(KEY) == b"one two"
    store.put(KEY, b"bytes")
    assert store.get(KEY) == b"bytes"


def test_a_blob_lies_where_the_settings_say(store: BlobStore, settings: Settings) -> None:
    store.put(KEY, b"in")
    store.put(result_key("abc"), b"out")
    assert files(settings) == ["inputs/abc", "results/abc"]
    assert (settings.blob_root / "results" / "abc").read_bytes() == b"out"


def test_a_second_opening_sees_the_same_blobs(store: BlobStore, settings: Settings) -> None:
    store.put(KEY, b"kept")
    assert BlobStore.open(settings).get(KEY) == b"kept"


def test_a_source_that_breaks_off_leaves_nothing(store: BlobStore, settings: Settings) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 6_000_000
        raise RuntimeError("the client went away")

    store.put(KEY, b"old")
    with pytest.raises(RuntimeError, match="went away"):
        store.put(KEY, broken())
    assert store.get(KEY) == b"old"
    assert files(settings) == ["inputs/abc"]


def test_a_stream_gives_the_blob_in_pieces(store: BlobStore) -> None:
    data = bytes(range(256)) * 20_000
    store.put(KEY, data)
    parts = list(store.stream(KEY))
    assert len(parts) > 1
    assert b"".join(parts) == data
    assert b"".join(store.stream(KEY, (5, 300))) == data[5:300]


def test_the_pieces_of_a_stream_are_small(store: BlobStore) -> None:
    """Each reader who is slow holds some of them."""
    data = bytes(range(256)) * 10_000
    store.put(KEY, data)
    parts = list(store.stream(KEY))
    assert b"".join(parts) == data
    assert max(map(len, parts)) <= 65_536


def test_a_missing_blob_is_not_found_at_once(store: BlobStore) -> None:
    assert not store.exists(KEY)
    with pytest.raises(BlobNotFound, match="inputs/abc"):
        store.get(KEY)
    with pytest.raises(BlobNotFound):
        store.stream(KEY)
    with pytest.raises(BlobNotFound):
        store.stream(KEY, (1, 2))


def test_deleting_is_done_whether_the_blob_is_there_or_not(
    store: BlobStore, settings: Settings
) -> None:
    store.put(KEY, b"x")
    store.delete(KEY, result_key("abc"))
    store.delete(KEY)
    assert not store.exists(KEY)
    assert files(settings) == []


@pytest.mark.parametrize(
    "key", ["", "inputs/", "inputs/../x", "/etc/passwd", "other/abc", "inputs/a/b"]
)
def test_a_key_that_is_not_ours_is_refused(store: BlobStore, key: str) -> None:
    for call in (store.get, store.exists, store.delete, store.stream):
        with pytest.raises(ValueError, match="inputs/ID"):
            call(key)
    with pytest.raises(ValueError, match="inputs/ID"):
        store.put(key, b"")


def test_a_folder_that_cannot_be_written_is_said_so(store: BlobStore, settings: Settings) -> None:
    (settings.blob_root / "inputs").write_text("a file where a folder should be")
    with pytest.raises(StoreUnavailable, match="could not store 'inputs/abc'") as caught:
        store.put(KEY, b"x")
    assert "\n" not in caught.value.detail


def test_a_root_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("")
    with pytest.raises(StoreUnavailable, match="blobs"):
        BlobStore.open(Settings(blob_root=tmp_path / "blobs"))
