"""Where image bytes live: a local folder by default, S3-compatible storage for several hosts.

A put is atomic, because obstore writes aside and renames (a folder) or uploads at once (S3). In a
folder a process that is killed meanwhile leaves what it wrote aside, `KEY#1`, to `remove_staged`.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from .errors import BlobNotFound, StoreUnavailable
from .settings import Settings

_FOLDERS = ("inputs", "results")
_KEY = re.compile(rf"({'|'.join(_FOLDERS)})/[A-Za-z0-9_-]{{1,64}}")
_PARTIAL = re.compile(r"[A-Za-z0-9_-]{1,64}#[0-9]+")
# Bounds the memory that a large image takes in passing.
WRITE_CHUNK = 5 * 1024 * 1024
# Every reader who is slow to take a result holds two or three of them.
READ_CHUNK = 64 * 1024


def input_key(job_id: str) -> str:
    return f"inputs/{job_id}"


def result_key(job_id: str) -> str:
    return f"results/{job_id}"


class BlobStore:
    """Blobs by key. Blocking, safe to share between threads.

    Every method raises StoreUnavailable, and ValueError for a key that would leave the two folders.
    """

    def __init__(self, store: ObjectStore, *, place: str, root: Path | None = None) -> None:
        self._store = store
        self._root = root
        self.place = place

    @classmethod
    def open(cls, settings: Settings) -> BlobStore:
        """The store that the settings name; a local folder is made when it is not there."""
        place = settings.blob_url or str(settings.blob_root)
        with _store_errors("open", place):
            if settings.blob_url is not None:
                return cls(from_url(settings.blob_url), place=place)
            root = settings.blob_root
            return cls(LocalStore(prefix=root, mkdir=True), place=place, root=root)

    def put(self, key: str, data: bytes | Path | IO[bytes] | Iterable[bytes]) -> None:
        """Stores the blob, replacing what was there. A source that raises leaves nothing."""
        _check(key)
        with _store_errors("store", key):
            obstore.put(self._store, key, data, chunk_size=WRITE_CHUNK)

    def get(self, key: str) -> bytes:
        """The whole blob; raises BlobNotFound."""
        _check(key)
        with _store_errors("read", key):
            return bytes(obstore.get(self._store, key).bytes())

    def stream(self, key: str, part: tuple[int, int] | None = None) -> Generator[bytes, None, None]:
        """The blob, or its bytes `part[0]` up to but without `part[1]`, in pieces. Raises
        BlobNotFound at once; closing it closes the blob."""
        _check(key)
        with _store_errors("read", key):
            options: obstore.GetOptions = {} if part is None else {"range": part}
            answer = obstore.get(self._store, key, options=options)
            pieces = answer.stream(min_chunk_size=READ_CHUNK)
        return _chunks(pieces, key)

    def exists(self, key: str) -> bool:
        _check(key)
        try:
            with _store_errors("look up", key):
                obstore.head(self._store, key)
        except BlobNotFound:
            return False
        return True

    def try_out(self) -> None:
        """Writes a blob of one byte and removes it; a full disk has no room for it."""
        key = input_key(f"try-{secrets.token_hex(8)}")
        try:
            self.put(key, b"1")
        finally:
            self.delete(key)

    def delete(self, *keys: str) -> None:
        """Removes the blobs; one that is not there is no error."""
        for key in keys:
            _check(key)
            with _store_errors("delete", key), suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    def remove_staged(self, *, idle_s: float) -> int:
        """Removes what puts have written aside in a local folder and not touched for so long,
        since their process died; returns how many."""
        count, oldest = 0, time.time() - idle_s
        for folder in [self._root / name for name in _FOLDERS] if self._root else []:
            with _store_errors("tidy up", folder.name), suppress(FileNotFoundError):
                for path in folder.iterdir():
                    # One whose put ends in this moment is gone.
                    with suppress(FileNotFoundError):
                        if _PARTIAL.fullmatch(path.name) and path.stat().st_mtime < oldest:
                            path.unlink()
                            count += 1
        return count


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"A blob's key is inputs/ID or results/ID; got {key!r}.")


def _chunks(pieces: Iterable[bytes], key: str) -> Generator[bytes, None, None]:
    with _store_errors("read", key):
        for piece in pieces:
            # A remote store sends what it likes.
            for start in range(0, len(view := memoryview(piece)), READ_CHUNK):
                yield bytes(view[start : start + READ_CHUNK])


@contextmanager
def _store_errors(verb: str, key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise BlobNotFound(f"There is no blob {key!r} in the image store.", key=key) from None
    except (BaseError, OSError) as error:
        # obstore adds its internals below the first line.
        reason = str(error).partition("\n")[0].rstrip(".")
        raise StoreUnavailable(
            f"The image store could not {verb} {key!r}: {reason}.", retry_after=5
        ) from error
