"""Where image bytes live: a local folder by default, S3-compatible storage for several hosts.

A put is atomic: a blob is there whole or not at all. What a process that is killed meanwhile had
written aside in a folder, `KEY#1`, `remove_staged` removes; parts of a multipart upload to S3 need
a rule of the bucket (docs/deployment.md).

A remote store has seconds for each answer, and a request with a large body half a minute for a part
of it: obstore's time for an answer begins with the request, not with its last byte. So before such
a request the store is asked for something small.
"""

from __future__ import annotations

import heapq
import logging
import re
import secrets
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path, PurePath
from typing import IO, Literal
from urllib.parse import quote

import obstore
from obstore.exceptions import BaseError, GenericError
from obstore.store import LocalStore, ObjectStore

from .errors import BlobNotFound, StoreUnavailable
from .remote_store import StoreBreaker, open_remote, store_errors
from .schema import Job
from .settings import Settings

logger = logging.getLogger(__name__)

_FOLDERS = ("inputs", "results", "uploads")
_KEY = re.compile(rf"({'|'.join(_FOLDERS)})/[A-Za-z0-9_-]{{1,64}}")
_PARTIAL = re.compile(r"[A-Za-z0-9_-]{1,64}#[0-9]+")
# Bounds the memory that a large image takes in passing. S3 takes no smaller parts.
WRITE_CHUNK = 5 * 1024 * 1024
# Parts on their way at once, of one blob.
PARTS = 2
# Every reader who is slow to take a result holds two or three of them.
READ_CHUNK = 64 * 1024
# How long a remote store has for an answer, of the service and of a worker, and for one to a part.
ANSWER_S, PATIENT_S, PART_S = 5.0, 20.0, 30.0
# A call that failed after less was answered, or refused: the next one may be tried.
SLOW_S = 1.5
# Names that `page` looks at.
PAGE = 1000


def input_key(job_id: str) -> str:
    return f"inputs/{job_id}"


def result_key(job_id: str) -> str:
    return f"results/{job_id}"


def upload_key(name: str) -> str:
    return f"uploads/{name}"


def file_fields(job: Job, media_type: str) -> dict[str, str]:
    """Content-Type, and Content-Disposition (RFC 6266) with the upload's name and the scale:
    photo.jpg at 4 becomes photo-4x.png."""
    stem = PurePath(job.input.filename or job.id).stem
    extension = media_type.rpartition("/")[2].replace("jpeg", "jpg")
    name = f"{stem}-{job.parameters.scale:g}x.{extension}"
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    # What UTF-8 cannot say, a name from a broken form, must not end the answer.
    exact = quote(name.encode("utf-8", "replace"), safe="")
    disposition = f"inline; filename=\"{plain}\"; filename*=UTF-8''{exact}"
    return {"Content-Type": media_type, "Content-Disposition": disposition}


def job_id_of(key: str) -> str:
    return key.partition("/")[2]


class BlobStore:
    """Blobs by key. Blocking, safe to share between threads.

    Every method raises StoreUnavailable, and ValueError for a key that would leave the folders.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        place: str,
        root: Path | None = None,
        parts: ObjectStore | None = None,
        silent_s: float = 0,
    ) -> None:
        self._store = store
        # The same place, with more time for a request.
        self._parts = parts or store
        self._root = root
        self._breaker = StoreBreaker(silent_s)
        self.place = place

    @classmethod
    def open(cls, settings: Settings, *, patient: bool = False) -> BlobStore:
        """The store that the settings name; a local folder is made when it is not there.

        A `patient` worker, which would lose a long job, asks again and waits for longer.
        """
        url = (settings.blob_url or "").partition("?")[0]
        place = url or str(settings.blob_root)
        silent_s = 0 if patient else ANSWER_S
        with store_errors("open", place):
            if not url:
                root = settings.blob_root
                local = LocalStore(prefix=root, mkdir=True)
                return cls(local, place=place, root=root, silent_s=silent_s)
            answer_s = PATIENT_S if patient else ANSWER_S
            store, parts = (
                open_remote(url, seconds, again_s=0.6 * answer_s) for seconds in (answer_s, PART_S)
            )
            return cls(store, place=place, parts=parts, silent_s=silent_s)

    def check(self) -> None:
        """Raises StoreUnavailable while the store is known to give no answer; asks nothing."""
        self._breaker.check(asks=False)

    def put(
        self,
        key: str,
        data: bytes | Path | IO[bytes] | Iterable[bytes],
        fields: Mapping[str, str] | None = None,
    ) -> None:
        """Stores the blob, replacing what was there. A source that raises leaves nothing.

        `fields` are what a remote store says of it to those who have a link.
        """
        _check(key)
        store = self._store
        if self._root is None and not isinstance(data, bytes):
            store = self._parts
            self._ask(key)
        with self._call("store", key):
            obstore.put(
                store,
                key,
                data,
                attributes=dict(fields) if fields and self._root is None else None,
                chunk_size=WRITE_CHUNK,
                max_concurrency=PARTS,
            )

    def get(self, key: str) -> bytes:
        """The whole blob; raises BlobNotFound."""
        _check(key)
        with self._call("read", key, of_blob=True):
            return bytes(obstore.get(self._store, key).bytes())

    def stream(self, key: str, part: tuple[int, int] | None = None) -> Generator[bytes, None, None]:
        """The blob, or its bytes `part[0]` up to but without `part[1]`, in pieces. Raises
        BlobNotFound at once; closing it closes the blob."""
        _check(key)
        with self._call("read", key, of_blob=True):
            options: obstore.GetOptions = {} if part is None else {"range": part}
            answer = obstore.get(self._store, key, options=options)
            pieces = answer.stream(min_chunk_size=READ_CHUNK)
        return self._chunks(pieces, key)

    def link(self, key: str, seconds: int, method: Literal["GET", "PUT"] = "GET") -> str:
        """The address that gives or takes the blob of a remote store for so long, of all who have
        it. Asks nothing."""
        _check(key)
        with store_errors("sign a link to", key):
            return str(obstore.sign(self._store, method, key, timedelta(seconds=seconds)))  # type: ignore[arg-type]  # those of a folder sign nothing

    def exists(self, key: str) -> bool:
        _check(key)
        try:
            with self._call("look up", key, of_blob=True):
                obstore.head(self._store, key)
        except BlobNotFound:
            return False
        return True

    def try_out(self) -> None:
        """Writes a blob of one byte and removes it; a full disk has no room for it."""
        key = input_key(f"try-{secrets.token_hex(8)}")
        self.put(key, b"1")
        self.delete(key)

    def report(self) -> None:
        """Says in the log where the store does not work, which may be mended while this runs."""
        try:
            self.try_out()
        except StoreUnavailable as error:
            logger.error("The image store %s does not work now: %s", self.place, error.detail)

    def delete(self, *keys: str) -> None:
        """Removes the blobs; one that is not there is no error."""
        for key in keys:
            _check(key)
            with suppress(BlobNotFound), self._call("delete", key, of_blob=True):
                obstore.delete(self._store, key)

    def page(self, after: str) -> tuple[dict[str, float], str]:
        """Keys that follow the name `after` and when each was written, in seconds since 1970; and
        the name to go on after, empty at the end. Names that are no keys are left out."""
        with self._call("list", self.place):
            listing = obstore.list(self._store, offset=after or None, chunk_size=PAGE)
            # A folder is listed in no order.
            names = (
                next(iter(listing), [])
                if self._root is None
                else heapq.nsmallest(PAGE, (m for c in listing for m in c), lambda m: m["path"])
            )
        blobs = {m["path"]: m["last_modified"].timestamp() for m in names}
        last = names[-1]["path"] if len(names) >= PAGE else ""
        return {key: at for key, at in blobs.items() if _KEY.fullmatch(key)}, last

    def remove_staged(self, *, idle_s: float) -> int:
        """Removes what puts have written aside in a local folder and not touched for so long,
        since their process died; returns how many."""
        count, oldest = 0, time.time() - idle_s
        for folder in [self._root / name for name in _FOLDERS] if self._root else []:
            with store_errors("tidy up", folder.name), suppress(FileNotFoundError):
                for path in folder.iterdir():
                    # One whose put ends in this moment is gone.
                    with suppress(FileNotFoundError):
                        if _PARTIAL.fullmatch(path.name) and path.stat().st_mtime < oldest:
                            path.unlink()
                            count += 1
        return count

    def _ask(self, key: str) -> None:
        """Raises StoreUnavailable where the store gives no answer; any answer will do."""
        with self._call("reach", key):
            try:
                obstore.head(self._store, key)
            except (BaseError, OSError) as error:
                if isinstance(error, GenericError):
                    raise

    def _chunks(self, pieces: Iterable[bytes], key: str) -> Generator[bytes, None, None]:
        rest = iter(pieces)
        while True:
            # What is on its way is not stopped by the silence of others.
            with self._call("read", key, asks=False):
                piece = next(rest, None)
            if piece is None:
                return
            # A remote store sends what it likes.
            for start in range(0, len(view := memoryview(piece)), READ_CHUNK):
                yield bytes(view[start : start + READ_CHUNK])

    @contextmanager
    def _call(
        self, verb: str, key: str, *, of_blob: bool = False, asks: bool = True
    ) -> Iterator[None]:
        """A call of the store; raises BlobNotFound if it is `of_blob`, one that must be there."""
        if asks:
            self._breaker.check()
        began = time.monotonic()
        try:
            with store_errors(verb, key):
                yield
        except StoreUnavailable as error:
            is_slow = time.monotonic() - began > SLOW_S
            self._breaker.note(is_silent=is_slow and isinstance(error.__cause__, GenericError))
            if not (of_blob and isinstance(error.__cause__, FileNotFoundError)):
                raise
            if self._root is None:
                # Nor is there, where the whole bucket is missing, what is asked for in it.
                with store_errors(verb, key):
                    next(iter(obstore.list(self._store, prefix=key)), None)
            raise BlobNotFound(f"There is no blob {key!r} in the image store.", key=key) from None
        self._breaker.note(is_silent=False)


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"A blob's key is inputs/ID or results/ID; got {key!r}.")
