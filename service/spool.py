"""Keeps what arrives in a temporary file: its first megabyte in memory, then on the disk."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import IO

from anyio.to_thread import run_sync

from jobs.errors import StoreUnavailable, UploadTooLarge

SPOOLED_BYTES = 1024 * 1024


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


def no_room(error: OSError) -> StoreUnavailable:
    detail = f"The upload cannot be kept while it is checked: {error.strerror or error}."
    return StoreUnavailable(detail, retry_after=30)


def too_large(limit: int, what: str = "request's body") -> UploadTooLarge:
    """The refusal of what has more than `limit` bytes."""
    return UploadTooLarge(
        f"The {what} is larger than {limit} bytes, the most that is taken.",
        max_upload_bytes=limit,
    )
