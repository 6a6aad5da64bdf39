"""POST /uploads: where a large image can be put, for the job that is to follow."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from functools import partial

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.admission import admit, services_of
from service.image_source import UPLOAD, reference_key
from service.openapi import problems
from service.problems import HTTPError

router = APIRouter(tags=["jobs"])


class DirectUpload(BaseModel):
    """PUT the file's bytes to `put_url`, then send `image_url` to `POST /upscale`."""

    put_url: str = Field(description="In the image store; needs no key")
    headers: dict[str, str] = Field(description="What the PUT has to send along")
    image_url: str = Field(description="Stands for the image until a day after the PUT")
    max_upload_bytes: int = Field(description="What is larger is refused by `POST /upscale`")
    expires_at: datetime = Field(description="When `put_url` ends")


@router.post(
    "/uploads",
    status_code=201,
    summary="Get a place for a large image",
    responses=problems(
        401,
        _409="The image store is a folder of the server, or gives no links.",
        _429="Too many requests; see Retry-After.",
        _503="Redis or the image store is away.",
    ),
)
async def offer_upload(request: Request) -> DirectUpload:
    """A link into the image store, which takes the file past this service and its proxies.

    The image is checked when a job is asked for, and may then be used for several.
    """
    services = services_of(request)
    caller, _ = await admit(request, upload=True)
    settings, seconds = services.settings, services.settings.links_s
    if not seconds:
        raise HTTPError(
            "no-direct-uploads",
            "The image store gives no links; send the image to POST /upscale.",
        )
    reference = UPLOAD + secrets.token_urlsafe(24)
    key = reference_key(reference, caller.owner)
    link = partial(services.store.link, key, seconds, "PUT")
    return DirectUpload(
        put_url=await services.store_threads.run(link),
        # Azure's blobs have a type.
        headers={"x-ms-blob-type": "BlockBlob"} if services.store.place[:3] == "az:" else {},
        image_url=reference,
        max_upload_bytes=settings.max_upload_bytes,
        expires_at=datetime.now(UTC) + timedelta(seconds=seconds),
    )
