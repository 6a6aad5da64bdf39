"""Blobs in a folder and in S3: whole or not at all, and errors in sentences."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from jobs import remote_store
from jobs import store as module
from jobs.errors import BlobNotFound, StoreUnavailable
from jobs.settings import Settings
from jobs.store import BlobStore, input_key, result_key
from tests.s3_server import S3Server, environment, silence, slow_line

KEY = input_key("abc")
Names = Callable[[], list[str]]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty place in S3, which is where the environment says."""
    for name, value in environment(s3.url).items():
        monkeypatch.setenv(name, value)
    yield s3.bucket("bucket")
    s3.clear()


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Each kind of store."""
    is_folder = request.param == "folder"
    url = None if is_folder else request.getfixturevalue("bucket")
    return Settings(blob_root=tmp_path / "blobs", blob_url=url)


@pytest.fixture
def folder(tmp_path: Path) -> Settings:
    return Settings(blob_root=tmp_path / "blobs")


@pytest.fixture
def names(settings: Settings, request: pytest.FixtureRequest) -> Names:
    """Gives the names of all that is stored, without the place."""

    def names() -> list[str]:
        if settings.blob_url is not None:
            s3: S3Server = request.getfixturevalue("s3")
            return [name.removeprefix("images/") for name in s3.names("bucket")]
        root = settings.blob_root
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    return names


def hasty(url: str, monkeypatch: pytest.MonkeyPatch, *, patient: bool = False) -> BlobStore:
    """A store at this endpoint, which has a second for an answer."""
    monkeypatch.setattr(module, "ANSWER_S", 1.0)
    monkeypatch.setattr(module, "PATIENT_S", 1.0)
    monkeypatch.setattr(module, "SLOW_S", 0.5)
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)
    return BlobStore.open(Settings(blob_url="s3://bucket"), patient=patient)


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


def test_a_blob_lies_where_the_settings_say(store: BlobStore, names: Names) -> None:
    store.put(KEY, b"in")
    store.put(result_key("abc"), b"out")
    assert names() == ["inputs/abc", "results/abc"]


def test_a_second_opening_sees_the_same_blobs(store: BlobStore, settings: Settings) -> None:
    store.put(KEY, b"kept")
    assert BlobStore.open(settings).get(KEY) == b"kept"


def test_a_source_that_breaks_off_leaves_nothing(store: BlobStore, names: Names) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 6_000_000
        raise RuntimeError("the client went away")

    store.put(KEY, b"old")
    with pytest.raises(RuntimeError, match="went away"):
        store.put(KEY, broken())
    assert store.get(KEY) == b"old"
    assert names() == ["inputs/abc"]


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


def test_deleting_is_done_whether_the_blob_is_there_or_not(store: BlobStore, names: Names) -> None:
    store.put(KEY, b"x")
    store.delete(KEY, result_key("abc"))
    store.delete(KEY)
    assert not store.exists(KEY)
    assert names() == []


@pytest.mark.parametrize(
    "key", ["", "inputs/", "inputs/../x", "/etc/passwd", "other/abc", "inputs/a/b"]
)
def test_a_key_that_is_not_ours_is_refused(store: BlobStore, key: str) -> None:
    for call in (store.get, store.exists, store.delete, store.stream):
        with pytest.raises(ValueError, match="inputs/ID"):
            call(key)
    with pytest.raises(ValueError, match="inputs/ID"):
        store.put(key, b"")


def test_a_folder_that_cannot_be_written_is_said_so(folder: Settings) -> None:
    store = BlobStore.open(folder)
    (folder.blob_root / "inputs").write_text("a file where a folder should be")
    with pytest.raises(StoreUnavailable, match="could not store 'inputs/abc'") as caught:
        store.put(KEY, b"x")
    assert "\n" not in caught.value.detail


def test_a_root_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("")
    with pytest.raises(StoreUnavailable, match="blobs"):
        BlobStore.open(Settings(blob_root=tmp_path / "blobs"))


def test_a_page_goes_on_where_the_last_one_ended(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 20)
    began = time.time()
    keys = [input_key(f"{number:04}") for number in range(20)] + [result_key("abc")]
    for key in keys:
        store.put(key, b"x")
    first, after = store.page("")
    second, end = store.page(after)
    assert [*sorted(first), *second] == keys
    assert (after, end) == (keys[19], "")
    assert all(began - 2 < at < time.time() + 2 for at in (first | second).values())


def test_a_page_has_only_names_that_are_keys(folder: Settings) -> None:
    store = BlobStore.open(folder)
    store.put(KEY, b"x")
    for name in ("inputs/b#1", "inputs/b c", "inputs/deep/er", "other", "inputs.txt"):
        path = folder.blob_root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    page, after = store.page("")
    assert (list(page), after) == ([KEY], "")


def test_a_missing_bucket_is_a_store_that_cannot_be_used(bucket: str) -> None:
    store = BlobStore.open(Settings(blob_url="s3://gone/images"))
    pieces = (b"x" * 6_000_000 for _ in range(2))
    for call in (
        lambda: store.put(KEY, b"x"),
        lambda: store.put(KEY, pieces),
        lambda: store.get(KEY),
        lambda: store.stream(KEY),
        lambda: store.exists(KEY),
        lambda: store.delete(KEY),
        lambda: store.page(""),
        store.try_out,
    ):
        with pytest.raises(StoreUnavailable, match="bucket does not exist") as caught:
            call()
        assert caught.value.clause == "takes no images (NoSuchBucket)"
        assert "\n" not in caught.value.detail


def test_a_store_that_does_not_work_is_said_in_the_log_until_it_does(
    s3: S3Server, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = BlobStore.open(Settings(blob_url="s3://later"))
    caplog.set_level("INFO", "jobs.store")
    store.report()
    s3.bucket("later")
    store.report()
    [line] = [record.message for record in caplog.records if record.name == "jobs.store"]
    assert line.startswith("The image store s3://later does not work now: ")
    assert "(NoSuchBucket)" in line
    assert s3.names("later") == []


def test_a_silent_store_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with silence() as url:
        store = hasty(url, monkeypatch)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="no answer in time") as caught:
            store.put(KEY, io.BytesIO(b"x" * 20_000_000))
        assert caught.value.clause == "gives no answer"
        with pytest.raises(StoreUnavailable):
            store.check()
        for _ in range(100):
            with pytest.raises(StoreUnavailable, match="within the last 1 s"):
                store.get(KEY)
        assert time.monotonic() - began < 4


def test_one_call_asks_a_silent_store_again() -> None:
    breaker = remote_store.StoreBreaker(0.05)
    breaker.note(is_silent=True)
    time.sleep(0.06)
    breaker.check(asks=False)
    breaker.check()
    with pytest.raises(StoreUnavailable):
        breaker.check()
    breaker.note(is_silent=False)
    breaker.check()
    breaker.check()


def test_a_patient_worker_asks_a_silent_store_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with silence() as url:
        store = hasty(url, monkeypatch, patient=True)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="no answer in time"):
                store.get(KEY)
        store.check()


def test_a_large_blob_has_more_time_for_its_parts_than_an_answer(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(12_000_000)
    # A part takes 1.3 seconds, an answer has one.
    with slow_line(s3.url, 4_000_000) as url:
        store = hasty(url, monkeypatch)
        store.put(KEY, io.BytesIO(data))
        assert store.get(KEY) == data


def test_a_link_gives_the_blob_its_type_and_name_for_a_while(bucket: str) -> None:
    store, key = BlobStore.open(Settings(blob_url=bucket)), result_key("abc")
    fields = {"Content-Type": "image/webp", "Content-Disposition": 'inline; filename="a.webp"'}
    # In one request, and in parts.
    for content in (b"12345", bytes(6 * 1024 * 1024)):
        store.put(key, io.BytesIO(content), fields)
        answer = httpx.get(store.link(key, 60))
        assert answer.status_code == 200
        assert answer.content == content
        assert {name: answer.headers[name] for name in fields} == fields
        part = httpx.get(store.link(key, 60), headers={"Range": "bytes=1-2"})
        assert (part.status_code, part.content) == (206, content[1:3])
    assert "X-Amz-Expires=60" in store.link(key, 60)
    with pytest.raises(ValueError, match="A blob's key"):
        store.link("other/abc", 60)
