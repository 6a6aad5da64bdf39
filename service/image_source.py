"""The ways of an image into a temporary file: its first megabyte in memory, then on the disk.

It comes as bytes; as text, in base64, plain or as a data URI; or by its address, fetched from a
URL, or read from a remote image store, where its client put it by a link, past this service.

The store checks who writes there, not what or how much. So an image is read from there when a job
is submitted, checked as any other, and stored anew: what a link still overwrites is not what the
worker reads. The sweep removes it a day after it was written.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import ExitStack, aclosing, closing
from functools import partial
from pathlib import PurePosixPath
from typing import IO
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import anyio
import httpx
from anyio.to_thread import run_sync

from jobs.errors import BlobNotFound, StoreUnavailable, UploadTooLarge
from jobs.store import upload_key
from service.admission import Services
from service.egress import BadTarget, Egress
from service.problems import HTTPError, InvalidParameters

IMAGE_FIELD, URL_FIELD = "image", "image_url"
SPOOLED_BYTES = 1024 * 1024
# Characters of base64 decoded at a time; a multiple of four.
PIECE = 256 * 1024
# For the whole of it, redirects too: what waits for its answer gives up after a minute.
FETCH_S = 30.0
STALLS = httpx.Timeout(10.0, connect=5.0)
MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Stores that were not told what they hold say octet-stream.
_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")
_WHAT = "image at the URL"
_FIELDS = {
    "Accept": "image/*, application/octet-stream;q=0.5",
    "Accept-Encoding": "identity",
    "User-Agent": "stablesr-images",
}
UPLOAD = "upload:"
"""Begins what stands in `image_url` for an image in the store; a secret of its client"""
_REFERENCE = re.compile(UPLOAD + r"[A-Za-z0-9_-]{32}")


async def spool(pieces: AsyncIterable[bytes], file: IO[bytes]) -> None:
    """Writes the pieces into a spooled file; raises StoreUnavailable where there is no room."""
    try:
        async for piece in pieces:
            # What is large goes to the disk, which may be slow.
            if file.tell() + len(piece) > SPOOLED_BYTES:
                await run_sync(file.write, piece)
            else:
                file.write(piece)
    except OSError as error:
        raise no_room(error) from error


async def bounded(
    pieces: AsyncIterable[bytes], limit: int, what: str
) -> AsyncGenerator[bytes, None]:
    """The pieces; raises UploadTooLarge once they are more than `limit` bytes, of `what`."""
    count = 0
    async for piece in pieces:
        count += len(piece)
        if count > limit:
            raise too_large(limit, what)
        yield piece


def no_room(error: OSError) -> StoreUnavailable:
    detail = f"The upload cannot be kept while it is checked: {error.strerror or error}."
    return StoreUnavailable(detail, retry_after=30)


def too_large(limit: int, what: str = "request's body") -> UploadTooLarge:
    """The refusal of what has more than `limit` bytes."""
    return UploadTooLarge(
        f"The {what} is larger than {limit} bytes, the most that is taken.",
        max_upload_bytes=limit,
    )


def open_image(text: str, limit: int, field: str) -> IO[bytes] | str:
    """An open file with the bytes of a text, or the text itself where it is an address. Blocking.

    `field` begins the sentences of refusals. Raises UploadTooLarge, before anything is decoded, for
    more than `limit` bytes; InvalidParameters for what is not strictly base64; StoreUnavailable
    without room for the file.
    """
    start, fault = 0, partial(InvalidParameters.of, field)
    if text[:5].lower() == "data:":
        start = text.find(",", 0, 1000) + 1
        if not text[:start].lower().endswith(";base64,"):
            raise fault("must be base64 where it is a data URI: data:image/png;base64,...")
    elif ":" in text[:20] or field == URL_FIELD:
        return text
    size = (len(text) - start) // 4 * 3 - text.count("=", -2)
    if size > limit:
        raise too_large(limit, "image")
    with ExitStack() as undo:
        file = undo.enter_context(tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES))
        try:
            for begin in range(start, len(text), PIECE):
                piece = text[begin : begin + PIECE]
                if begin + PIECE < len(text) and piece.endswith("="):
                    raise fault("must be base64 that ends with its last character")
                file.write(binascii.a2b_base64(piece, strict_mode=True))
            # Not an error of Python's behind a whole group of four.
            if (len(text) - start) % 4:
                raise ValueError("Excess padding")
        # Letters outside of ASCII among it.
        except ValueError as error:
            detail = f"must be base64, of A-Z a-z 0-9 + / and = only: {error}".rstrip(".")
            raise fault(detail) from error
        except OSError as error:
            raise no_room(error) from error
        undo.pop_all()
    return file


async def fetch(egress: Egress, url: str, file: IO[bytes], limit: int, field: str) -> str | None:
    """Writes what is at the URL into the file; returns the name that its path ends with.

    Every redirect is judged as the URL was. `field` begins the sentences of refusals. Raises:
        HTTPError: `image-url-refused` for an address that is not called; `image-url-failed` for an
            answer that is none, no image, or does not come in time.
        UploadTooLarge: there are more than `limit` bytes.
        StoreUnavailable: there is no room for the file.
    """
    try:
        with anyio.fail_after(FETCH_S):
            for _ in range(MAX_REDIRECTS + 1):
                target = egress.target(url)
                async with egress.request("GET", target, _FIELDS, STALLS) as answer:
                    if answer.status_code not in _REDIRECTS:
                        async with aclosing(_content(answer, limit, field)) as pieces:
                            await spool(pieces, file)
                        return PurePosixPath(unquote(urlsplit(url).path)).name or None
                    url = _next(url, answer.headers.get("Location", ""))
    except BadTarget as error:
        raise HTTPError("image-url-refused", f"{field} {error}.") from error
    except TimeoutError as error:
        raise _failure(field, f"was not there within {FETCH_S:g} seconds") from error
    # Its text may name what stands behind a name, or be empty.
    except (httpx.HTTPError, OSError) as error:
        kind = type(error).__name__
        raise _failure(field, f"cannot be fetched: the connection failed ({kind})") from error
    raise _failure(field, f"leads on more than {MAX_REDIRECTS} times")


def _next(url: str, location: str) -> str:
    try:
        return urldefrag(urljoin(url, location)).url
    except ValueError as error:
        raise BadTarget(f"leads to what is no URL: {error}") from error


async def _content(answer: httpx.Response, limit: int, field: str) -> AsyncGenerator[bytes, None]:
    status, headers = answer.status_code, answer.headers
    if status != 200:
        raise _failure(field, f"cannot be fetched: its server answers {status}")
    kind = headers.get("Content-Type", _TYPES[1]).strip().lower()
    if not kind.startswith(_TYPES):
        raise _failure(field, f"must lead to an image; it is {kind[:80]!r}")
    if (coding := headers.get("Content-Encoding", "identity").strip().lower()) != "identity":
        raise _failure(field, f"must be sent as it is; it is {coding[:80]!r}")
    length = headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large(limit, _WHAT)
    async for piece in bounded(answer.aiter_raw(), limit, _WHAT):
        yield piece


def _failure(field: str, clause: str) -> HTTPError:
    return HTTPError("image-url-failed", f"{field} {clause}.")


async def read_upload(
    services: Services, reference: str, owner: str, file: IO[bytes], limit: int, field: str
) -> None:
    """Writes the image into the file. `field` begins the sentences of refusals.

    Raises:
        HTTPError: `image-url-failed` for a reference that is none, or is another key's, and where
            nothing was put.
        UploadTooLarge: there are more than `limit` bytes.
        StoreUnavailable: the store gives no answer, or there is no room for the file.
    """
    missing = HTTPError(
        "image-url-failed",
        f"{field} leads to no image; it must be the one that POST /uploads gave this key, after "
        "the image was put where it said, less than a day ago.",
    )
    if not _REFERENCE.fullmatch(reference):
        raise missing
    try:
        stream = partial(services.store.stream, reference_key(reference, owner))
        blob = await services.store_threads.run(stream)
    except BlobNotFound:
        raise missing from None
    with closing(blob):
        await spool(bounded(services.store_threads.iterate(blob), limit, "image"), file)


def reference_key(reference: str, owner: str) -> str:
    """Where in the store the image lies that a reference stands for."""
    return upload_key(hashlib.sha256(f"{owner}/{reference}".encode()).hexdigest())
