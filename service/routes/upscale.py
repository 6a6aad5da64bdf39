"""POST /upscale: an image becomes a job, whose end the request may wait for."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers

from service.intake import Intake
from service.json_body import image_and_fields, json_limit, receive_json
from service.openapi import REQUEST_HEADERS, UPLOAD_BODY, header, problems
from service.problems import root_path
from service.ratelimit import TooManyOpen
from service.routes.jobs import RETRY_AFTER, answer
from service.schema import JobView
from service.uploads import FORM, JSON, URL_FIELD, check_head, receive_form
from service.waiting import MAX_WAIT_S, preferences, wait_for_end

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
            _400="The form is broken, or a header field.",
            _408="The upload stopped half way, or took too long.",
            _409="The first request with this Idempotency-Key is still being handled.",
            _413="The body is larger than `max_upload_bytes`.",
            _415="The body is not multipart/form-data, or it is compressed.",
            _422="The file is not a whole still image within the limits, a field is wrong, or the "
            "Idempotency-Key belongs to another request.",
            _429="Too many requests or transfers, or too many jobs of this client wait; see "
            "Retry-After.",
            _503="The queue is full, or Redis or the image store is away; see Retry-After. Or the "
            "worker has no weights for this preset.",
        ),
    },
)
async def upscale(request: Request) -> Response:
    """Takes one image and how to upscale it, and answers with the job at once, or with
    `Prefer: wait=N` when it has ended, after N seconds (at most 60) at the latest.

    Fields that are left out, or empty, take the preset's defaults; without `preset` it is the one
    that `GET /models` calls the default. Unknown fields, fields given twice and parameters in the
    URL are refused, so that nothing asked for is silently ignored.

    With an `Idempotency-Key` the same request can be sent again without making another job.
    """
    intake = await Intake.of(request)
    services, client = intake.services, intake.origin.client
    settings = services.settings
    most = settings.max_upload_bytes
    kind = check_head(request, {FORM: most, JSON: json_limit(most)})
    seconds = _wait_s(request.headers)
    await intake.check_room()
    with intake.slot():
        if kind == FORM:
            async with receive_form(request, most, settings.upload_timeout_s) as form:
                if isinstance(form.image, str):
                    job, is_replay = await intake.submit_text(form.image, form.fields, URL_FIELD)
                else:
                    image = form.image
                    job, is_replay = await intake.submit(image.file, form.fields, image.filename)
        else:
            document = await receive_json(request, json_limit(most), settings.upload_timeout_s)
            job, is_replay = await intake.submit_text(*image_and_fields(document))
    headers = {"Location": f"{root_path(request)}/jobs/{job.id}"}
    if is_replay:
        headers["Idempotent-Replayed"] = "true"
    status = 202
    if seconds is not None:
        with suppress(TooManyOpen), services.streams.slot(client):
            job = await wait_for_end(request, services, job, seconds)
            headers["Preference-Applied"] = f"wait={seconds}"
        status = 200 if job.state.is_final else 202
    return answer(request, job, status=status, headers=headers)


def _wait_s(headers: Headers) -> int | None:
    """The seconds of `Prefer: wait=N`, at most 60; None without that preference.

    A preference that makes no sense is as none, as the RFC says.
    """
    value = preferences(headers).get("wait", "")
    return min(int(value[:9]), MAX_WAIT_S) if value.isascii() and value.isdigit() else None
