"""Downloads one large file over HTTP, and goes on where an earlier attempt was cut off.

`huggingface_hub` does not, as of its version 2.4: each call begins anew, and what it had when the
connection broke for good is removed (its pull request 4228). The files here have 6.5 GB. What is
needed of the hub is one request: `GET <endpoint>/<repository>/resolve/<revision>/<file>`, which
redirects to where the bytes are and tells their SHA-256 in `X-Linked-Etag`.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from models.checkpoints.description import FileSum, sum_of
from models.checkpoints.progress import Listener, WeightsProgress, ignore
from models.checkpoints.writing import check_room
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


@dataclass(frozen=True)
class _Answer:
    """What a server said of a file."""

    size: int | None
    sha256: str | None


class _TryAgain(Exception):
    """An attempt that failed for a reason that may pass.

    Args:
        reason: a clause.
        after: seconds that the server asked to wait.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


def download(
    url: str,
    target: Path,
    wanted: ReleasedFile,
    *,
    token: str | None = None,
    progress: Listener = ignore,
    pause: Callable[[float], None] = time.sleep,
) -> FileSum:
    """Downloads `wanted` to `target`, which is whole and checked, or not there.

    What an attempt got stays beside `target`, as *.part, and the next one goes on from there. Where
    no sum tells whether both are of one file, its ETag does, which lies in *.part.etag. A file that
    is there already is checked, and downloaded only if it is another.

    Args:
        url: where it is.
        target: where to put it; its folder must exist.
        wanted: its size and, where it is known, its sum.
        token: of a login that the server may ask for; it is not sent to other hosts.
        progress: is told of every piece.
        pause: waits a number of seconds.

    Raises:
        DownloadFailed: the server cannot be reached, refuses, or sends another file.
        DiskFull: the disk has no room.
    """
    if target.exists():
        there = sum_of(target, progress)
        if wanted.sha256 in (None, there.sha256):
            return there
        target.unlink()
    part = target.with_name(f"{target.name}.part")
    answer = _persist(url, part, wanted, token, progress, pause)
    came = sum_of(part, lambda now: progress(replace(now, name=wanted.name)))
    expected = wanted.sha256 or answer.sha256
    if expected not in (None, came.sha256):
        _forget(part)
        raise DownloadFailed(
            f"{wanted.name} from {url} is not the released file: its sha256 is {came.sha256} and "
            f"should be {expected}. What came was removed; try again, or use another source."
        )
    part.rename(target)
    _tag(part).unlink(missing_ok=True)
    return FileSum(target.name, came.bytes, came.sha256)


def _persist(
    url: str,
    part: Path,
    wanted: ReleasedFile,
    token: str | None,
    progress: Listener,
    pause: Callable[[float], None],
) -> _Answer:
    """Attempts until the file is whole, or until several in a row brought nothing."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "stablesr-server"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    failures = 0
    with httpx.Client(headers=headers, follow_redirects=True, timeout=_TIMEOUT) as client:
        while True:
            before = _size(part)
            try:
                return _attempt(client, url, part, wanted, progress)
            except _TryAgain as error:
                failures = 0 if _size(part) > before else failures + 1
                if failures >= _ATTEMPTS:
                    kept = _size(part)
                    more = f" {kept} bytes of it are kept for the next try." if kept else ""
                    raise DownloadFailed(
                        f"{url} could not be downloaded: {error}.{more}"
                    ) from error
                pause(min(error.after or 2**failures, _LONGEST_PAUSE_S))


def _attempt(
    client: httpx.Client, url: str, part: Path, wanted: ReleasedFile, progress: Listener
) -> _Answer:
    """One request, which appends to `part` what is missing.

    Raises:
        _TryAgain: the file is not whole yet.
    """
    have, headers, tag = _size(part), {}, None
    # A published sum finds out a part of another file, and goes on from another mirror, whose tags
    # may be others.
    if have and wanted.sha256 is None:
        tag = _read_tag(part)
        if tag is None:
            log.warning("%s begins anew: nothing tells which file its part is of", wanted.name)
            have = 0
        elif not tag.startswith("W/"):
            headers["If-Range"] = tag
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with client.stream("GET", url, headers=headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                return _past_the_end(response, part, have)
            _check_status(response, url)
            start, size = _extent(response)
            if start and tag is not None and response.headers.get("ETag") != tag:
                _forget(part)
                raise _TryAgain("what was kept is of another file than the server has now")
            if start != have:
                # The server sends all of it, or another piece than was asked for.
                if start != 0:
                    raise _TryAgain(f"the server sent the file from byte {start}, not from {have}")
                have = 0
            if size is not None and abs(size - wanted.size) > _TOLERANCE * wanted.size:
                raise DownloadFailed(
                    f"{url} is not the released file: the server has {size} bytes, and "
                    f"{wanted.name} has about {wanted.size}."
                )
            check_room(part.parent, (size or wanted.size) - have)
            with part.open("r+b" if have else "wb") as file:
                if not have:
                    _write_tag(part, response)
                file.seek(have)
                # As the pieces come: the beginning of larger ones would be lost with a connection.
                for piece in response.iter_raw():
                    file.write(piece)
                    have += len(piece)
                    progress(WeightsProgress("download", wanted.name, have, size or wanted.size))
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise DownloadFailed(
            f"{url} is no address that can be downloaded from: {error}."
        ) from error
    except httpx.ProxyError as error:
        raise DownloadFailed(f"The proxy does not lead to {url}: {error}.") from error
    except httpx.TooManyRedirects as error:
        raise DownloadFailed(f"{url} leads in a circle of redirects.") from error
    except httpx.TransportError as error:
        what = "cannot be reached" if isinstance(error, httpx.ConnectError) else "broke off"
        raise _TryAgain(f"the connection {what} ({str(error) or type(error).__name__})") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"The disk of {part.parent} ran full after {have} bytes.") from error
        raise
    if size is not None and have != size:
        raise _TryAgain(f"the connection ended after {have} of {size} bytes")
    return _Answer(size, _linked_sum(response))


def _check_status(response: httpx.Response, url: str) -> None:
    """Whether the answer brings the file.

    Raises:
        _TryAgain: not now.
        DownloadFailed: not in this way.
    """
    status = response.status_code
    if status in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        return
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise DownloadFailed(
            f"{url} asks for a login ({status}): set HF_TOKEN to a token that may read it."
        )
    if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
        raise DownloadFailed(f"{url} is not there ({status}): the file was moved or removed.")
    if status == httpx.codes.TOO_MANY_REQUESTS:
        raise _TryAgain("the server answers that it gets too many requests (429)", _after(response))
    if status == httpx.codes.REQUEST_TIMEOUT or status >= 500:
        raise _TryAgain(f"the server answers {status}", _after(response))
    raise DownloadFailed(f"{url} cannot be downloaded: the server answers {status}.")


def _past_the_end(response: httpx.Response, part: Path, have: int) -> _Answer:
    """There is nothing after what is there: it is the whole file, or a piece of another."""
    total = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
    if total and int(total[1]) == have:
        return _Answer(have, _linked_sum(response))
    _forget(part)
    raise _TryAgain("what was kept of the file is longer than the file")


def _extent(response: httpx.Response) -> tuple[int, int | None]:
    """The first byte that is sent, and the size of the whole file where it is told."""
    ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code == httpx.codes.PARTIAL_CONTENT and ranged:
        return int(ranged[1]), None if ranged[2] == "*" else int(ranged[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _linked_sum(response: httpx.Response) -> str | None:
    """The sum that the hub tells, on its own answer or on its redirect to the bytes."""
    for answer in (*response.history, response):
        tag = answer.headers.get("X-Linked-Etag", "").strip('W/"')
        if re.fullmatch(r"[0-9a-f]{64}", tag):
            return str(tag)
    return None


def _after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait; a date there is not understood, and not needed."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _read_tag(part: Path) -> str | None:
    return _tag(part).read_text() if _tag(part).is_file() else None


def _write_tag(part: Path, response: httpx.Response) -> None:
    """Of a part that is empty so far: a kill leaves no bytes under the tag of others."""
    tag = response.headers.get("ETag")
    if tag is None:
        _tag(part).unlink(missing_ok=True)
    else:
        _tag(part).write_text(tag)


def _forget(part: Path) -> None:
    part.unlink()
    _tag(part).unlink(missing_ok=True)
