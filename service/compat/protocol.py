"""What the protocols share: credentials, errors, a body of JSON, field names, and the wait."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import JsonValue
from starlette.types import Scope

from jobs.errors import JobEnded, JobNotFound, JobsError
from jobs.job_store import QUEUE_TTL_S
from jobs.schema import Job, JobState
from models.geometry import output_size
from models.presets import PRESETS
from service.admission import ReaderDep, Services, services_of
from service.intake import Intake
from service.json_body import image_and_fields, json_limit, receive_json
from service.problems import HTTPError, InvalidParameters, respond
from service.routes.upscale import wait_for_end
from service.submission import header_of
from service.uploads import JSON, check_head

OWNER = "stablesr"
"""Of the models, whose names are the presets'."""
# What fields of POST /upscale are called elsewhere.
NAMES: Mapping[str, str] = {
    **dict.fromkeys(("factor", "scale_factor", "upscale_factor"), "scale"),
    "num_inference_steps": "steps",
    "output_quality": "quality",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "An API key is needed."},
    "default": {"description": "An error, in the protocol's own form."},
}
KEPT_HEADERS = ("www-authenticate", "retry-after", "accept-encoding", "x-fal-request-id")
Values = Mapping[str, JsonValue]


def router(
    tag: str, shape: Callable[[dict[str, Any]], Any] | None = None, prefix: str = ""
) -> APIRouter:
    """Routes that take a key as `Key` or Basic credentials too, and whose errors are `shape` of the
    problem, as JSON; without one, the problem."""

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
                headers = {k: v for k, v in answer.headers.items() if k in KEPT_HEADERS}
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


def listed(*place: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The form of errors that lists what is wrong with the fields at a place of the body."""

    def shape(problem: dict[str, Any]) -> dict[str, Any]:
        if problem["status"] != 422:
            return {"detail": problem["detail"]}
        faults = problem.get("errors", [{"field": "", "detail": problem["detail"]}])
        kind = problem["type"].rpartition("/")[2]
        return {
            "detail": [
                {"loc": [*place, each["field"]], "msg": each["detail"], "type": kind}
                for each in faults
            ]
        }

    return shape


def body(*required: str, **properties: Any) -> dict[str, Any]:
    """The description of a route that takes JSON."""
    schema = {"type": "object", "required": [*required], "properties": properties}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


def fault(field: str, detail: str) -> InvalidParameters:
    return InvalidParameters([{"field": field, "detail": detail}])


def preset_of(owner: str, name: str) -> str:
    """The preset of a model; raises HTTPError for one that is not known."""
    if owner == OWNER and name in PRESETS:
        return name
    models = ", ".join(f"{OWNER}/{preset}" for preset in PRESETS)
    detail = f"There is no model {f'{owner}/{name}'[:80]!r}; the models are {models}."
    raise HTTPError("model-not-found", detail)


@asynccontextmanager
async def receive(
    request: Request, key: str | None = None
) -> AsyncIterator[tuple[Intake, dict[str, JsonValue]]]:
    """What may submit, and a request's JSON; held as a transfer while the block runs."""
    intake = await Intake.of(request, key)
    settings = intake.services.settings
    limit = json_limit(settings.max_upload_bytes)
    check_head(request, {JSON: limit})
    await intake.check_room()
    with intake.slot():
        yield intake, await receive_json(request, limit, settings.upload_timeout_s)


@contextmanager
def names_of(theirs: Mapping[str, str]) -> Iterator[None]:
    """Refusals in the block call a field of ours what the client called it."""
    try:
        yield
    except InvalidParameters as error:
        errors: Any = error.extra["errors"]
        renamed = ({**each, "field": theirs.get(each["field"], each["field"])} for each in errors)
        raise InvalidParameters([*renamed]) from error


async def submit(
    intake: Intake, values: Values, protocol: str, ours: Values, names: Mapping[str, str] = NAMES
) -> Job:
    """The job of an image and fields, whose names are others'; `ours` are fields that were said in
    another place, or None. `protocol` is kept with the job."""
    own = {name: value for name, value in ours.items() if value is not None}
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
        text, fields, field = image_and_fields(own)
        return (await intake.submit_text(text, fields, theirs.get(field, field)))[0]


@dataclass(frozen=True)
class SizedIntake(Intake):
    """Makes images of a size, px: of exactly that one, or else at least as large."""

    size: tuple[int, int]
    exact: bool = True

    async def submit(
        self, file: IO[bytes], texts: Mapping[str, str], filename: str | None = None
    ) -> tuple[Job, bool]:
        scale = await run_sync(self._scale, file)
        return await super().submit(file, {**texts, "scale": repr(scale)}, filename)

    def _scale(self, file: IO[bytes]) -> float:
        width, height = header_of(file, self.services.settings.max_input_pixels).upright
        wide, high = self.size
        scale = max(wide / width, high / height)
        result = output_size(width, height, scale)
        if self.exact and result != self.size:
            detail = f"must have the aspect of the image, {width} x {height}, which is not cut; "
            detail += f"got {wide} x {high}, where {result[0]} x {result[1]} would be right"
            raise fault("size", detail)
        return scale


def patience(services: Services) -> int:
    """Seconds that a job may wait for a worker while its request is held open."""
    return min(services.settings.job_timeout_s, QUEUE_TTL_S)


async def ends_of(request: Request, intake: Intake, *jobs: Job) -> list[Job]:
    """The jobs when all have ended. Raises TooManyOpen, and HTTPError if the client left or this
    server is to stop; then it cancels them, for no client knows them."""
    services, ends = intake.services, []
    try:
        with services.streams.slot(intake.origin.client):
            for job in jobs:
                # A worker that is lost has its job done again.
                end = await wait_for_end(request, services, job, 10 * patience(services))
                if not end.state.is_final:
                    detail = f"Job {job.id} had not ended when its request did, and is canceled."
                    raise HTTPError("not-ready", detail, retry_after=1)
                ends.append(end)
    except BaseException:
        await cancel(services, *jobs)
        raise
    return ends


async def cancel(services: Services, *jobs: Job) -> None:
    """Cancels those of the jobs that have not ended, whatever ends this request."""
    with anyio.CancelScope(shield=True):
        for job in jobs:
            with suppress(JobEnded, JobNotFound):
                await run_sync(services.queue.cancel, job.id, job.owner)


def check_success(job: Job) -> Job:
    """The same job; raises HTTPError for one that failed or was canceled."""
    if job.state is JobState.SUCCEEDED:
        return job
    detail = job.error.detail if job.error else f"Job {job.id} is {job.state}."
    raise HTTPError("job-failed", detail, cause=job.error.type if job.error else None)


async def _job(request: Request, job_id: str, caller: ReaderDep) -> Job:
    return await services_of(request).jobs.get(job_id, caller.owner)


JobDep = Annotated[Job, Depends(_job)]
"""The job in the path, of the caller."""
