"""A result on its way to the disk: beside its target until it is whole, then renamed."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from client.errors import DownloadFailed
from client.schema import Result

__all__ = ["Part"]


class Part:
    """The bytes that have come so far, as a context that leaves nothing beside a whole target.

    Args:
        target: the file that is replaced in the end.
        expected: what the job announced.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, target: Path, expected: Result) -> None:
        self._target = target
        self._expected = expected
        # Two downloads to one target, of two threads even, do not meet.
        self._aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        self._etag: str | None = None
        self.size = 0
        """Bytes that have come."""
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        self._file = self._aside.open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)

    @property
    def whole(self) -> bool:
        """Whether as many bytes have come as were announced."""
        return self.size == self._expected.bytes

    def headers(self) -> dict[str, str]:
        """The request's headers: for the rest, when there is something to go on from.

        `If-Range` makes the server send all of it when it is another file by now.
        """
        # Compressed, a range would mean other bytes than those counted here.
        headers = {"Accept": "image/*, application/problem+json", "Accept-Encoding": "identity"}
        if self.size and self._etag is not None:
            headers |= {"Range": f"bytes={self.size}-", "If-Range": self._etag}
        return headers

    def begin(self, response: httpx.Response) -> None:
        """Takes the answer's head: what follows continues what is here, or replaces it."""
        match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        continues = (
            response.status_code == httpx.codes.PARTIAL_CONTENT
            and match is not None
            and int(match[1]) == self.size
        )
        if not continues:
            self.restart()
        etag = response.headers.get("ETag")
        # Only a strong one promises the same bytes.
        self._etag = etag if etag and not etag.startswith("W/") else None

    def restart(self) -> None:
        """Forgets the bytes that have come."""
        self._file.seek(0)
        self._file.truncate()
        self._etag = None
        self.size = 0
        self._hash = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def check(self) -> None:
        """Compares what has come with what was announced.

        Raises:
            DownloadFailed: it is something else.
        """
        if not self.whole:
            raise DownloadFailed(
                f"The result should have {self._expected.bytes} bytes; {self.size} arrived."
            )
        if self._expected.sha256 not in (None, self._hash.hexdigest()):
            raise DownloadFailed(
                f"The result's sha256 should be {self._expected.sha256}; "
                f"what arrived has {self._hash.hexdigest()}."
            )

    def keep(self) -> None:
        """Makes it the target, on the disk before it has the target's name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._aside.replace(self._target)
