"""POST /upscale: an image becomes a job, whose end the request may wait for. POST /uploads: where a
large image can be put, for the job that is to follow."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service import uploads
from service.admission import admit, services_of
from service.image_source import UPLOAD, reference_key
from service.openapi import REQUEST_HEADERS, UPLOAD_BODY, header, problems
from service.problems import HTTPError, root_path
from service.ratelimit import TooManyOpen
from service.routes.jobs import RETRY_AFTER, answer
from service.schema import JobView
from service.submission import Intake
from service.uploads import FORM, JSON
from service.waiting import wait_for_end, wait_s

router = APIRouter(tags=["jobs"])

HEADERS = {
    "Location": header("The job's path."),
    "Preference-Applied": header("`wait=N` when the request waited for the job's end."),
    "Idempotent-Replayed": header("`true` when an earlier request made the job."),
}


@router.post(
    "/upscale",
    status_code=202,
    response_model=JobView,
    summary="Upscale an image",
    response_description="The job is queued or runs; ask for it at `Location`.",
    openapi_extra={**UPLOAD_BODY, "parameters": REQUEST_HEADERS},
    responses={
        200: {
            "description": "The job has ended, within the time of `Prefer: wait`.",
            "model": JobView,
            "headers": HEADERS,
        },
        202: {"headers": {**HEADERS, **RETRY_AFTER}},
        **problems(
            401,
            _400="The form or the JSON is broken, or a header field.",
            _408="The upload stopped half way, or took too long.",
            _409="The first request with this Idempotency-Key is still being handled.",
            _413="The body is larger than `max_upload_bytes`.",
            _415="The body is neither multipart/form-data nor JSON, or it is compressed.",
            _422="The file is not a whole still image within the limits, or cannot be fetched, a "
            "field is wrong, or the Idempotency-Key belongs to another request.",
            _429="Too many requests or transfers, or too many jobs of this client wait; see "
            "Retry-After.",
            _503="The queue is full, or Redis or the image store is away; see Retry-After. Or the "
            "worker has no weights for this preset.",
        ),
    },
)
async def upscale(request: Request) -> Response:
    """Takes one image and how to upscale it, and answers with the job at once, or with
    `Prefer: wait=N` when it has ended, after N seconds (at most 50) at the latest.

    Fields that are left out, or empty, take the preset's defaults; without `preset` it is the one
    that `GET /models` calls the default. Unknown fields, fields given twice and parameters in the
    URL are refused, so that nothing asked for is silently ignored.

    With an `Idempotency-Key` the same request can be sent again without making another job.
    """
    services = services_of(request)
    limit, within_s = services.settings.max_upload_bytes, services.settings.upload_timeout_s
    limits = {FORM: limit, JSON: uploads.json_limit(limit)}
    seconds = wait_s(request.headers)
    async with AsyncExitStack() as held:
        intake, kind = await held.enter_async_context(Intake.open(request, limits))
        if kind == FORM:
            receive = uploads.receive_parts(request, limit, within_s)
            form = uploads.form_of_parts(await held.enter_async_context(receive))
        else:
            pick = partial(uploads.form_of, limit=limit)
            form = await uploads.receive_json(request, limits[kind], within_s, pick)
        if isinstance(form.image, str):
            # Whom another's server makes wait is counted apart.
            await held.aclose()
        else:
            held.callback(form.image.close)
        began = anyio.current_time()
        job, is_replay = await intake.submit(form)
    headers = {"Location": f"{root_path(request)}/jobs/{job.id}"}
    if is_replay:
        headers["Idempotent-Replayed"] = "true"
    status = 202
    if seconds is not None:
        # What storing or fetching the image took is part of the wait.
        left_s = began + seconds - anyio.current_time()
        with suppress(TooManyOpen), services.streams.slot(intake.origin.client):
            job = await wait_for_end(request, services, job, left_s)
            headers["Preference-Applied"] = f"wait={seconds}"
        status = 200 if job.state.is_final else 202
    return answer(request, job, status=status, headers=headers)


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
