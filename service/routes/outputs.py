"""Results as the protocols of `service.compat` have them: at an address that needs no key, or as
base64 in JSON.

Their clients fetch an output without their key, or hand its address on. So it is signed, by the
secret of the key whose job it is, and works as long as the result is kept.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from jobs.errors import BlobNotFound, JobNotFound, KeyNotFound
from jobs.schema import ANYONE, Job, JobState
from service.admission import Services, services_of
from service.openapi import problems
from service.problems import HTTPError
from service.ratelimit import address_key
from service.readiness import StoreThreads
from service.routes.jobs import HeldStream
from service.routes.result import IMAGE, send_result

router = APIRouter(tags=["outputs"])


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


@router.get(
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
