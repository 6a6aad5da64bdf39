"""Downloads one large file over HTTP, and resumes where an earlier attempt was cut off.

`huggingface_hub` does not, as of its version 2.4: each call begins anew, and what it had when the
connection broke for good is removed (its pull request 4228). The files here have 6.5 GB. What is
needed of the hub is one request: `GET <endpoint>/<repository>/resolve/<revision>/<file>`, which
redirects to where the bytes are and gives their SHA-256 in `X-Linked-Etag`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx

from models.checkpoints.files import (
    FileSum,
    OnProgress,
    WeightsProgress,
    check_room,
    ignore,
    no_room,
    sum_of,
)
from models.errors import DiskFull, DownloadFailed
from models.presets import ReleasedFile

__all__ = ["download"]

log = logging.getLogger(__name__)

_TIMEOUT = httpx.Timeout(60, connect=20)
_ATTEMPTS = 5
"""In a row without a byte."""
_LONGEST_PAUSE_S = 60
_TOLERANCE = 0.01
"""The released sizes are known to three digits."""


class _TryAgain(Exception):
    """An attempt that failed for a reason that may pass: a clause, and the seconds that the server
    asked to wait."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


def download(
    url: str,
    target: Path,
    file: ReleasedFile,
    *,
    token: str | None = None,
    on_progress: OnProgress = ignore,
    pause: Callable[[float], None] = time.sleep,
) -> FileSum:
    """Downloads `file` to `target`, which is whole and checked, or not there.

    A file that is there already is checked, and downloaded only if it is another.

    Args:
        url: where it is.
        target: where to put it; its folder must exist.
        file: its size and, where it is known, its sum.
        token: of a login that the server may ask for; it is not sent to other hosts.
        on_progress: is called for every chunk.
        pause: waits a number of seconds.

    Raises:
        DownloadFailed: the server cannot be reached, refuses, or sends another file.
        DiskFull: the disk has no room.
    """
    if target.exists():
        existing = sum_of(target, on_progress)
        if file.sha256 in (None, existing.sha256):
            return existing
        target.unlink()
    part = _PartialDownload(target, file, on_progress)
    published = part.fetch(url, token, pause)
    actual = sum_of(part.path, lambda now: on_progress(replace(now, name=file.name)))
    expected = file.sha256 or published
    if expected not in (None, actual.sha256):
        part.remove()
        raise DownloadFailed(
            f"{file.name} from {url} is not the released file: its sha256 is {actual.sha256} and "
            f"should be {expected}. What came was removed; try again, or use another source."
        )
    part.path.rename(target)
    part.tag.unlink(missing_ok=True)
    return FileSum(target.name, actual.bytes, actual.sha256)


class _PartialDownload:
    """What an attempt got, beside the target as *.part, for the next one to resume from. Where no
    sum says whether both are of one file, its ETag does, which lies in *.part.etag."""

    def __init__(self, target: Path, file: ReleasedFile, on_progress: OnProgress) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.tag = target.with_name(f"{target.name}.part.etag")
        self._file, self._on_progress = file, on_progress

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def remove(self) -> None:
        self.path.unlink()
        self.tag.unlink(missing_ok=True)

    def fetch(self, url: str, token: str | None, pause: Callable[[float], None]) -> str | None:
        """Attempts until the file is whole, or until several in a row brought nothing; gives the
        sum that the server publishes."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "stablesr-server"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        failures = 0
        with httpx.Client(headers=headers, follow_redirects=True, timeout=_TIMEOUT) as client:
            while True:
                before = self.size
                try:
                    return self._attempt(client, url)
                except _TryAgain as error:
                    failures = 0 if self.size > before else failures + 1
                    if failures >= _ATTEMPTS:
                        kept = f" {self.size} bytes of it are kept for the next try."
                        raise DownloadFailed(
                            f"{url} could not be downloaded: {error}.{kept if self.size else ''}"
                        ) from error
                    pause(min(error.after_s or 2**failures, _LONGEST_PAUSE_S))

    def _attempt(self, client: httpx.Client, url: str) -> str | None:
        """One request, which appends what is missing.

        Raises:
            _TryAgain: the file is not whole yet.
        """
        position, headers, tag = self.size, {}, None
        # A published sum finds out a part of another file, and goes on from another mirror, whose
        # tags may be others.
        if position and self._file.sha256 is None:
            tag = self.tag.read_text() if self.tag.is_file() else None
            if tag is None:
                log.warning("%s begins anew: its part has no ETag", self._file.name)
                position = 0
            elif not tag.startswith("W/"):
                headers["If-Range"] = tag
        if position:
            headers["Range"] = f"bytes={position}-"
        try:
            with client.stream("GET", url, headers=headers) as response:
                total = self._receive(response, url, position, tag)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise DownloadFailed(
                f"{url} is no address that can be downloaded from: {error}."
            ) from error
        except httpx.ProxyError as error:
            raise DownloadFailed(f"The proxy does not lead to {url}: {error}.") from error
        except httpx.TooManyRedirects as error:
            raise DownloadFailed(f"{url} leads in a circle of redirects.") from error
        except httpx.TransportError as error:
            fault = "cannot be reached" if isinstance(error, httpx.ConnectError) else "broke off"
            reason = str(error) or type(error).__name__
            raise _TryAgain(f"the connection {fault} ({reason})") from error
        except OSError as error:
            if no_room(error):
                raise DiskFull(
                    f"The disk of {self.path.parent} ran full after {self.size} bytes."
                ) from error
            raise
        if total is not None and self.size != total:
            raise _TryAgain(f"the connection ended after {self.size} of {total} bytes")
        return _published_sum(response)

    def _receive(
        self, response: httpx.Response, url: str, position: int, tag: str | None
    ) -> int | None:
        """Writes the body from `position`; gives the size of the whole file where it is known."""
        file, sent = self._file, response.headers
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            # There is nothing after what is here: it is the whole file, or a part of another.
            if sent.get("Content-Range") == f"bytes */{position}":
                return position
            self.remove()
            raise _TryAgain("what was kept of the file is longer than the file")
        _check_status(response, url)
        start, total = _extent(response)
        if start and tag is not None and sent.get("ETag") != tag:
            self.remove()
            raise _TryAgain("what was kept is of another file than the server has now")
        # The server may send all of it, or another range than was asked for.
        if start not in (0, position):
            raise _TryAgain(f"the server sent the file from byte {start}, not from {position}")
        if total is not None and abs(total - file.size) > _TOLERANCE * file.size:
            raise DownloadFailed(
                f"{url} is not the released file: the server has {total} bytes, and "
                f"{file.name} has about {file.size}."
            )
        position = start
        check_room(self.path.parent, (total or file.size) - position)
        with self.path.open("r+b" if position else "wb") as part:
            if not position:
                # A part that is empty so far: a kill leaves no bytes under the tag of others.
                self.tag.unlink(missing_ok=True)
                if "ETag" in sent:
                    self.tag.write_text(sent["ETag"])
            part.seek(position)
            # As the chunks come: the beginning of larger ones would be lost with a connection.
            for chunk in response.iter_raw():
                part.write(chunk)
                position += len(chunk)
                progress = WeightsProgress("download", file.name, position, total or file.size)
                self._on_progress(progress)
        return total


def _check_status(response: httpx.Response, url: str) -> None:
    """Whether the answer brings the file.

    Raises:
        _TryAgain: not now.
        DownloadFailed: not in this way.
    """
    status, after = response.status_code, response.headers.get("Retry-After", "")
    # A date there is not understood, and not needed.
    after_s = float(after) if after.isdigit() else None
    if status in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        return
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise DownloadFailed(
            f"{url} asks for a login ({status}): set HF_TOKEN to a token that may read it."
        )
    if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
        raise DownloadFailed(f"{url} is not there ({status}): the file was moved or removed.")
    if status == httpx.codes.TOO_MANY_REQUESTS:
        raise _TryAgain("the server answers that it gets too many requests (429)", after_s)
    if status == httpx.codes.REQUEST_TIMEOUT or status >= 500:
        raise _TryAgain(f"the server answers {status}", after_s)
    raise DownloadFailed(f"{url} cannot be downloaded: the server answers {status}.")


def _extent(response: httpx.Response) -> tuple[int, int | None]:
    """The first byte that is sent, and the size of the whole file where it is known."""
    ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code == httpx.codes.PARTIAL_CONTENT and ranged:
        return int(ranged[1]), None if ranged[2] == "*" else int(ranged[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _published_sum(response: httpx.Response) -> str | None:
    """The sum that the hub gives, on its own answer or on its redirect to the bytes."""
    for answer in (*response.history, response):
        tag = answer.headers.get("X-Linked-Etag", "").strip('W/"')
        if re.fullmatch(r"[0-9a-f]{64}", tag):
            return str(tag)
    return None
