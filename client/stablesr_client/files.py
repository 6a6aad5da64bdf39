"""Image files: the one that is sent, in any form a caller has it, and the result's."""

from __future__ import annotations

import hashlib
import io
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO, Self

import httpx

from .errors import DownloadFailed
from .schema import Result

Image = Path | str | bytes | BinaryIO
"""A file's path, a file's content, or an open binary file."""

FORMATS: Mapping[str, str] = {
    **{".png": "png", ".webp": "webp", ".avif": "avif"},
    **{".jpg": "jpeg", ".jpeg": "jpeg", ".jpe": "jpeg", ".jfif": "jpeg"},
    **{".tif": "tiff", ".tiff": "tiff"},
}
"""The format of a result by the suffix of its file's name."""


def format_of(target: Path) -> str:
    """The format that a file's name asks for; ValueError when its suffix is unknown."""
    if (suffix := target.suffix.lower()) not in FORMATS:
        raise ValueError(f"{target}: the name must end in one of {', '.join(FORMATS)}.")
    return FORMATS[suffix]


@contextmanager
def image_file(image: Image, filename: str | None) -> Iterator[tuple[str, BinaryIO]]:
    """The image's name and a file that can be read more than once."""
    path = image if isinstance(image, str | Path) else getattr(image, "name", None)
    name = filename or (PurePath(path).name if isinstance(path, str | Path) else "image")
    # As it can be sent; the server keeps it only to name the result.
    name = name.encode("utf-8", "replace").decode()
    if isinstance(image, bytes):
        yield name, io.BytesIO(image)
    elif isinstance(image, str | Path):
        with open(image, "rb") as file:
            yield name, file
    else:
        yield name, image if image.seekable() else io.BytesIO(image.read())


class PartialDownload:
    """A result on its way to the disk: beside its target until it is complete, then renamed.

    Nothing remains beside the target at the end of its `with` block. Its methods raise OSError.
    """

    def __init__(self, target: Path, result: Result) -> None:
        self._target, self._result = target, result
        # Short: the target may have the longest of names. Two downloads to one target do not meet,
        # not even those of two threads.
        digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
        self._path = target.with_name(f".{digest}.{uuid.uuid4().hex[:8]}.part")
        self._furthest = self._restarts = 0
        self._etag: str | None = None

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._clear()
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def headers(self) -> dict[str, str]:
        """The headers of the next request: for the rest, if it can be continued.

        With `If-Range` the server sends all of it when the file is another one by now.
        """
        # Compressed, a range would mean other bytes than those counted here.
        headers = {"Accept": "image/*, application/problem+json", "Accept-Encoding": "identity"}
        if self._size and self._etag is not None:
            headers |= {"Range": f"bytes={self._size}-", "If-Range": self._etag}
        return headers

    def begin(self, response: httpx.Response) -> None:
        """Reads the head of a response, whose body continues the bytes so far or replaces them."""
        match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        partial = response.status_code == httpx.codes.PARTIAL_CONTENT
        if not (partial and match and int(match[1]) == self._size):
            self._clear()
        etag = response.headers.get("ETag")
        # Only a strong one promises the same bytes.
        self._etag = etag if etag and not etag.startswith("W/") else None

    def write(self, chunk: bytes) -> bool:
        """Appends the next bytes; whether it has got further than ever before."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self._size += len(chunk)
        furthest, self._furthest = self._furthest, max(self._furthest, self._size)
        return self._size > furthest

    def end(self) -> None:
        """The body has come to its end, and was not cut."""
        self._at_end = True

    def is_complete(self) -> bool:
        """Whether the bytes are those announced; wrong ones are dropped once, then refused."""
        digest = self._hash.hexdigest()
        if self._size != self._result.bytes:
            if not self._at_end:
                return False
            fault = f"The result should have {self._result.bytes} bytes; {self._size} arrived."
        elif self._result.sha256 in (None, digest):
            return True
        else:
            fault = f"The result's sha256 should be {self._result.sha256}; it is {digest}."
        # Once more from the start: the pieces may have been of two files.
        if self._restarts:
            raise DownloadFailed(fault)
        self._restarts = 1
        self._clear()
        return False

    def rename(self) -> None:
        """Makes it the target, on the disk before it has the target's name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(self._target)

    def _clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self._size, self._etag, self._at_end = 0, None, False
