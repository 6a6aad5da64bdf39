"""Keeps an image that arrives in a temporary file: its first megabyte in memory, then on the disk.

It comes as bytes, or as text: in base64, plain or as a data URI.
"""

from __future__ import annotations

import binascii
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import ExitStack
from functools import partial
from typing import IO

from anyio.to_thread import run_sync

from jobs.errors import StoreUnavailable, UploadTooLarge
from service.problems import InvalidParameters

IMAGE_FIELD, URL_FIELD = "image", "image_url"
SPOOLED_BYTES = 1024 * 1024
# Characters of base64 decoded at a time; a multiple of four.
PIECE = 256 * 1024


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
        # Letters outside of ASCII among it.
        except ValueError as error:
            detail = f"must be base64, of A-Z a-z 0-9 + / and = only: {error}".rstrip(".")
            raise fault(detail) from error
        except OSError as error:
            raise no_room(error) from error
        undo.pop_all()
    return file
