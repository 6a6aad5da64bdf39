"""OpenAI's POST /v1/images/edits (openai of PyPI and npm): an image in, its enlargement out.

`size` is the result's and has the image's aspect. The fields of `POST /upscale` are taken too.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import FormData

import service.compat.protocol as protocol
from jobs.schema import Job
from service import waiting
from service.admission import services_of
from service.compat.protocol import OWNER, fault, preset_of
from service.submission import Intake
from service.uploads import FORM, form_of_parts, receive_parts

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)
DEFAULTS = {"n": "1", "background": "auto", "quality": "auto", "stream": "false"}
PERSONAL = ("user", "safety_identifier")


def shape(problem: dict[str, Any]) -> dict[str, Any]:
    """A problem as OpenAI says it."""
    kind = "server_error" if problem["status"] >= 500 else "invalid_request_error"
    param = problem.get("errors", [{}])[0].get("field")
    code = problem["type"].rpartition("/")[2]
    return {"error": {"message": problem["detail"], "type": kind, "param": param, "code": code}}


router = protocol.router("openai", shape, prefix="/v1/images")
_IMAGE = {"image": {"type": "string", "format": "binary"}}
_FORM = {"type": "object", "required": ["image"], "properties": _IMAGE}
BODY = {"requestBody": {"required": True, "content": {FORM: {"schema": _FORM}}}}


@router.post("/edits", openapi_extra=BODY)
async def edit_image(request: Request) -> Response:
    """`model` is a preset; `prompt` may be empty. A client that leaves cancels its job."""
    settings = services_of(request).settings
    limit, within_s = settings.max_upload_bytes, settings.upload_timeout_s
    async with (
        Intake.open(request, {FORM: limit}) as (intake, _),
        receive_parts(request, limit, within_s, max_files=16) as parts,
    ):
        job, as_url = await _submit(intake, parts)
    [job] = await waiting.ends_of(request, intake.origin.client, job)
    content = {"created": int(waiting.check_success(job).created_at.timestamp())}
    if as_url:
        url = await protocol.address_of(request, job)
        return JSONResponse({**content, "data": [{"url": url}]})
    data = [{"b64_json": protocol.mark(job.id)}]
    client = intake.origin.client
    return await protocol.inline(intake.services, client, {**content, "data": data}, job)


async def _submit(intake: Intake, parts: FormData) -> tuple[Job, bool]:
    """The job of a form, and whether its result is asked for as an address."""
    items = [(name.removesuffix("[]"), value) for name, value in parts.multi_items()]
    form = form_of_parts(FormData(items))
    fields = {name: value for name, value in form.fields.items() if name not in PERSONAL}
    for name, value in DEFAULTS.items():
        if (text := fields.pop(name, value)) != value:
            raise fault(name, f"must be {value}; got {text[:80]}")
    if (kind := fields.pop("response_format", "b64_json")) not in ("b64_json", "url"):
        raise fault("response_format", f"must be b64_json or url; got {kind[:80]}")
    if model := fields.pop("model", ""):
        fields["preset"] = preset_of(OWNER, model.removeprefix(f"{OWNER}/"))
    if quality := fields.pop("output_compression", ""):
        fields["quality"] = quality
    fields.setdefault("expires_in", str(waiting.patience(intake.services)))
    intake = replace(intake, origin=replace(intake.origin, protocol="openai"))
    if (size := fields.pop("size", "auto")) != "auto":
        sides = _SIZE.fullmatch(size)
        if sides is None:
            raise fault("size", f"must be auto or WIDTHxHEIGHT; got {size[:80]}")
        intake = replace(intake, size=(int(sides[1]), int(sides[2])))
    with protocol.names_of({"quality": "output_compression", "scale": "size"}):
        job, _ = await intake.submit(replace(form, fields=fields))
    return job, kind == "url"
