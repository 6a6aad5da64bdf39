"""Images that clients put into a remote image store themselves, by a link, past this service.

The store checks who writes there, not what or how much. So an image is read from there into a
temporary file when a job is submitted, checked as any other, and stored anew: what a link still
overwrites is not what the worker reads. The sweep removes it a day after it was written.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from contextlib import closing
from functools import partial
from typing import IO

from jobs.errors import BlobNotFound
from jobs.store import upload_key
from service.admission import Services
from service.problems import HTTPError
from service.spool import bounded, spool

SCHEME = "upload:"
_REFERENCE = re.compile(SCHEME + r"[A-Za-z0-9_-]{32}")


def new_reference() -> str:
    """What stands in `image_url` for an image that is yet to come; a secret of its client."""
    return SCHEME + secrets.token_urlsafe(24)


async def link(services: Services, reference: str, owner: str, seconds: int) -> str:
    """The address that takes the image with PUT for so long; raises StoreUnavailable."""
    call = partial(services.store.link, _key(reference, owner), seconds, "PUT")
    return await services.store_threads.run(call)


async def read(
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
        stream = partial(services.store.stream, _key(reference, owner))
        blob = await services.store_threads.run(stream)
    except BlobNotFound:
        raise missing from None
    with closing(blob):
        await spool(bounded(services.store_threads.iterate(blob), limit, "image"), file)


def _key(reference: str, owner: str) -> str:
    return upload_key(hashlib.sha256(f"{owner}/{reference}".encode()).hexdigest())
