"""What the protocols share: credentials, errors, a body of JSON, field names, and the wait."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import JsonValue
from starlette.types import Scope

from jobs.errors import JobsError
from jobs.schema import Job
from models.presets import PRESETS
from service.admission import ReaderDep, services_of
from service.image_source import IMAGE_FIELD, URL_FIELD, open_image
from service.json_body import form_of, json_limit, receive_json
from service.problems import HTTPError, InvalidParameters, respond
from service.submission import Intake
from service.uploads import JSON

# Of the models; and what fields of POST /upscale are called elsewhere.
OWNER = "stablesr"
NAMES: Mapping[str, str] = {
    **dict.fromkeys(("factor", "scale_factor", "upscale_factor"), "scale"),
    "num_inference_steps": "steps",
    "output_quality": "quality",
}
ERRORS: dict[int | str, dict[str, Any]] = {401: {"description": "An API key is needed."}}
ERRORS["default"] = {"description": "An error, in the protocol's own form."}
IMAGES = {IMAGE_FIELD, URL_FIELD, "data"}
Values = Mapping[str, JsonValue]


def router(
    tag: str, shape: Callable[[dict[str, Any]], Any] | None = None, prefix: str = ""
) -> APIRouter:
    """Routes that take keys in other credentials too; `shape` makes an error of a problem."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def translate(request: Request) -> Response:
                _read_credentials(request.scope)
                try:
                    return await handle(request)
                except JobsError as error:
                    answer = respond(request, error)
                if shape is None:
                    return answer
                headers = {k: v for k, v in answer.headers.items() if not k.startswith("content-")}
                content = shape(json.loads(bytes(answer.body)))
                return JSONResponse(content, answer.status_code, headers)

            return translate

    return APIRouter(prefix=prefix, tags=[tag], route_class=Route, responses=ERRORS)


def _read_credentials(scope: Scope) -> None:
    """Makes a key in another form that of a bearer; of Basic ones it is the password."""
    headers = []
    for name, value in scope["headers"]:
        scheme, _, rest = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"key":
            value = b"Bearer " + rest
        elif name == b"authorization" and scheme.lower() == b"basic":
            with suppress(ValueError):
                value = b"Bearer " + base64.b64decode(rest).partition(b":")[2]
        headers.append((name, value))
    scope["headers"] = headers


def field_list(*place: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The form of errors that lists what is wrong with the fields at a place of the body."""

    def shape(problem: dict[str, Any]) -> dict[str, Any]:
        if problem["status"] != 422:
            return {"detail": problem["detail"]}
        faults = problem.get("errors", [{"field": "", "detail": problem["detail"]}])
        kind = problem["type"].rpartition("/")[2]
        errors = [{"loc": [*place, e["field"]], "msg": e["detail"], "type": kind} for e in faults]
        return {"detail": errors}

    return shape


def body(*names: str, **properties: Any) -> dict[str, Any]:
    """The description of a route that takes JSON."""
    schema = {"type": "object", "required": names, "properties": properties}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


fault = InvalidParameters.of


def preset_of(owner: str, name: str) -> str:
    """The preset of a model; raises HTTPError for one that is not known."""
    if owner == OWNER and name in PRESETS:
        return name
    models = ", ".join(f"{OWNER}/{preset}" for preset in PRESETS)
    raise HTTPError("model-not-found", f"{owner}/{name} is no model; the models are {models}.")


@asynccontextmanager
async def receive(
    request: Request, key: str | None = None
) -> AsyncIterator[tuple[Intake, dict[str, Any]]]:
    """What may submit, and a request's JSON with open files as images; held as a transfer."""
    settings = services_of(request).settings
    limit, most = settings.max_upload_bytes, json_limit(settings.max_upload_bytes)
    async with Intake.open(request, {JSON: most}, key) as (intake, _), AsyncExitStack() as files:
        pick = partial(_with_files, limit=limit, files=files)
        yield intake, await receive_json(request, most, settings.upload_timeout_s, pick)


def _with_files(document: dict[str, Any], limit: int, files: AsyncExitStack) -> dict[str, Any]:
    """The same, with images that are base64 as open files."""
    batch = document.get("imageList")
    for node in (document, document.get("input"), *(batch if isinstance(batch, list) else ())):
        for name in IMAGES & node.keys() if isinstance(node, dict) else ():
            if isinstance(node[name], str):
                node[name] = image = open_image(node[name], limit, name)
                files.callback(getattr(image, "close", int))
    return document


@contextmanager
def names_of(theirs: Mapping[str, str]) -> Iterator[None]:
    """Refusals in the block call a field of ours what the client called it."""
    try:
        yield
    except InvalidParameters as error:
        errors: Any = error.extra["errors"]
        faults = ({**each, "field": theirs.get(each["field"], each["field"])} for each in errors)
        raise InvalidParameters([*faults]) from error


async def submit(
    intake: Intake, values: Values, protocol: str, ours: Values, names: Mapping[str, str] = NAMES
) -> Job:
    """The job of an image and fields under others' names; `ours` were said in another place."""
    own: dict[str, Any] = {name: value for name, value in ours.items() if value is not None}
    theirs = dict[str, str]()
    for name, value in values.items():
        field = names.get(name, name)
        if field in own:
            raise fault(name, f"must be left out: {theirs.get(field, 'another place')} says it too")
        if value is not None:
            own[field], theirs[field] = value, name
    if own.get("output_format") == "jpg":
        own["output_format"] = "jpeg"
    intake = replace(intake, origin=replace(intake.origin, protocol=protocol))
    with names_of(theirs):
        # What is no address is an open file by now.
        form = form_of(own, 0)
        return (await intake.submit(replace(form, field=theirs[form.field])))[0]


async def _job(request: Request, job_id: str, caller: ReaderDep) -> Job:
    return await services_of(request).jobs.get(job_id, caller.owner)


JobDep = Annotated[Job, Depends(_job)]
"""The job in the path, of the caller."""
