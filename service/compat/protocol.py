"""What the protocols share: credentials, errors, a body of JSON, field names, and results: at an
address that needs no key, or as base64 in JSON.

Their clients fetch an output without their key, or hand its address on. So it is signed, by the
secret of the key whose job it is, and works as long as the result is kept.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import JsonValue
from starlette.types import Scope

from jobs.errors import BlobNotFound, JobNotFound, JobsError, KeyNotFound
from jobs.schema import ANYONE, Job, JobState
from models.presets import PRESETS
from service.admission import ReaderDep, Services, services_of
from service.image_source import IMAGE_FIELD, URL_FIELD, open_image
from service.openapi import problems
from service.problems import HTTPError, InvalidParameters, respond
from service.ratelimit import address_key
from service.readiness import StoreThreads
from service.routes.jobs import HeldStream
from service.routes.result import IMAGE, send_result
from service.submission import Intake
from service.uploads import JSON, form_of, json_limit, receive_json

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
outputs = APIRouter(tags=["outputs"])


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


def base_of(request: Request) -> str:
    """The service's address, as the client has it."""
    return str(request.base_url).rstrip("/")


async def secret_of(services: Services, owner: str) -> str:
    """What signs the addresses of an owner's results; empty for jobs without one."""
    return "" if owner == ANYONE else await run_sync(services.keys.webhook_secret, owner)


def file_name(media_type: str) -> str:
    return f"output.{media_type.rpartition('/')[2].replace('jpeg', 'jpg')}"


def address(job: Job, base: str, secret: str) -> str | None:
    """Where all who have it may fetch a job's result; None where there is none."""
    if job.state is not JobState.SUCCEEDED or job.result is None:
        return None
    if job.owner == ANYONE:
        # Some clients follow no redirection.
        return f"{base}/jobs/{job.id}/result?direct=true"
    path = f"{job.owner}/{job.id}/{_signature(secret, job.id)}"
    return f"{base}/outputs/{path}/{file_name(job.result.media_type)}"


async def address_of(request: Request, job: Job) -> str | None:
    """The same, for the client of a request."""
    return address(job, base_of(request), await secret_of(services_of(request), job.owner))


def _signature(secret: str, job_id: str) -> str:
    return hmac.new(secret.encode(), f"output {job_id}".encode(), hashlib.sha256).hexdigest()


@outputs.get(
    "/outputs/{owner}/{job_id}/{signature}/{name}",
    response_class=Response,
    summary="Fetch an output",
    responses={200: {"content": IMAGE}, **problems(404, 429, 503, _410="The result has expired.")},
)
async def get_output(
    request: Request, owner: str, job_id: str, signature: str, name: str
) -> Response:
    """A result by the address that a protocol gave, without a key; `name` is for people."""
    services = services_of(request)
    client = address_key(request.client.host if request.client else None)
    request.state.headers, _ = await services.limits.count("reads", client)
    try:
        right = _signature(await run_sync(services.keys.webhook_secret, owner), job_id)
    except KeyNotFound:
        right = ""
    # As bytes: an address may hold any letter.
    if not hmac.compare_digest(right.encode(), signature.encode()):
        raise JobNotFound("There is no such output, or its address is not whole.")
    return await send_result(request, await services.jobs.get(job_id, owner), client, direct=True)


def mark(name: str) -> str:
    """What stands for bytes, to come in base64, in the content of `splice`."""
    return f"<{name}>"


async def inline(
    services: Services, client: str, content: Mapping[str, Any], *jobs: Job
) -> Response:
    """JSON in which the mark of each job's id becomes its result, in the jobs' order; counted as a
    transfer. Raises HTTPError for a result that is gone."""
    async with AsyncExitStack() as stack:
        stack.enter_context(services.transfers.slot(client))
        pieces = dict[str, tuple[Iterator[bytes], int]]()
        for job in jobs:
            assert job.result is not None
            try:
                stream = partial(services.store.stream, job.result.key)
                blob = await services.store_threads.run(stream)
            except BlobNotFound:
                raise HTTPError("result-expired", f"The result of job {job.id} is gone.") from None
            stack.callback(blob.close)
            pieces[mark(job.id)] = blob, job.result.bytes
        return splice(services.store_threads, content, pieces, stack.pop_all())


def splice(
    threads: StoreThreads,
    content: Mapping[str, Any],
    pieces: Mapping[str, tuple[Iterator[bytes], int]],
    stack: AsyncExitStack,
    status: int = 200,
) -> Response:
    """JSON in which each mark becomes bytes, of a known number, in base64; never all in memory."""
    text = json.dumps(content)
    length = len(text) + sum(-(-size // 3) * 4 - len(name) for name, (_, size) in pieces.items())

    async def stream() -> AsyncIterator[bytes]:
        rest = text
        for name, (blob, _) in pieces.items():
            before, _, rest = rest.partition(name)
            yield before.encode()
            tail = b""
            async for piece in threads.iterate(blob):
                data = tail + piece
                end = len(data) // 3 * 3
                tail = data[end:]
                yield base64.b64encode(data[:end])
            yield base64.b64encode(tail)
        yield rest.encode()

    headers = {"Content-Type": "application/json", "Content-Length": str(length)}
    return HeldStream(stream(), stack, status, headers)
