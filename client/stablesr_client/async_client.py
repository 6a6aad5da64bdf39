"""`AsyncClient`: the service for asyncio."""

from __future__ import annotations

import asyncio
import inspect
import random
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Self, Unpack

import httpx

from stablesr_client import protocol
from stablesr_client.errors import JobFailed, Refused, Unreachable
from stablesr_client.events import EventParser
from stablesr_client.files import Image, PartialDownload, format_of, image_file
from stablesr_client.protocol import Call, Protocol
from stablesr_client.retry import Polling, RetryPolicy
from stablesr_client.schema import Event, Job, JobPage, Models, Parameters

__all__ = ["AsyncClient"]


class AsyncClient(Protocol):
    """`Client` with the same methods to be awaited, for any number of tasks.

    `on_progress` may be a coroutine function. A task that is canceled while it waits in `upscale`
    cancels its job on the server. Files are read and written in the event loop's own thread, in
    pieces of 64 KiB.
    """

    def __init__(
        self,
        server: str,
        *,
        api_key: str | None = None,
        retry_policy: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(server, api_key, retry_policy, now, chance)
        self._http: httpx.AsyncClient = httpx.AsyncClient(transport=transport, **self._options)
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def submit(
        self,
        image: Image,
        *,
        filename: str | None = None,
        idempotency_key: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> Job:
        """See `Client.submit`."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        fields = {name: str(value) for name, value in parameters.items() if value is not None}
        with image_file(image, filename) as file:
            files = {"image": file}
            response = await self._send(protocol.SUBMIT, headers=headers, data=fields, files=files)
        return self._read(Job, response)

    async def get(self, job: Job | str) -> Job:
        """See `Client.get`."""
        return self._read(Job, await self._send(protocol.GET, job))

    async def cancel(self, job: Job | str) -> Job:
        """See `Client.cancel`."""
        response = await self._send(protocol.CANCEL, job)
        return await self.get(job) if response.status_code == 409 else self._read(Job, response)

    async def models(self) -> Models:
        """See `Client.models`."""
        return self._read(Models, await self._send(protocol.MODELS))

    async def jobs(
        self, state: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[Job, None]:
        """See `Client.jobs`; for `async for`."""
        left, page = sys.maxsize if limit is None else limit, None
        while left > 0 and (page is None or page.next is not None):
            response = await self._send(
                protocol.LIST, params=protocol.list_params(state, left, page)
            )
            page = self._read(JobPage, response)
            for job in page.jobs[:left]:
                yield job
            left -= len(page.jobs)

    async def wait(
        self,
        job: Job | str,
        on_progress: Callable[[Job], Any] | None = None,
        timeout: float | None = None,
    ) -> Job:
        """See `Client.wait`."""
        job = await self.get(job) if isinstance(job, str) else job
        await _call(on_progress, job)
        polling = self._polling(job, timeout)
        while not polling.job.ended:
            if await self._poll(polling):
                await _call(on_progress, polling.job)
        if not polling.job.succeeded:
            raise JobFailed(polling.job)
        return polling.job

    async def events(
        self, job: Job | str, last_event_id: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """See `Client.events`; for `async for`, within `contextlib.aclosing` when left early."""
        job = await self.get(job) if isinstance(job, str) else job
        parser, attempts = EventParser(last_event_id), self._attempts()
        while True:
            response = await self._send(protocol.EVENTS, job, headers=parser.headers())
            async with aclosing(response):
                if response.status_code in protocol.NO_EVENTS:
                    break
                if response.status_code == 204:  # the caller's last event was the end
                    return
                connected_at = self._clock.now()
                parser.reconnected()
                outage = Unreachable(f"{self._server} ended the events before the job's end.")
                try:
                    async for chunk in response.aiter_bytes():
                        for event in self._read_events(parser, chunk, job):
                            attempts.reset()
                            yield event
                            if event.name == "end":
                                return
                            job = event.job
                except httpx.TransportError as error:
                    outage = self._outage(error)
            if self._clock.now() - connected_at > self._policy.longest_pause_s:
                attempts.reset()
            await self._sleep(max(attempts.pause_after(outage), parser.retry_s))
        polling = self._polling(await self.get(job))
        yield polling.event()
        while not polling.job.ended:
            if await self._poll(polling):
                yield polling.event()

    async def download(self, job: Job | str, path: Path | str) -> Job:
        """See `Client.download`."""
        job = await self.get(job) if isinstance(job, str) or job.result is None else job
        if job.result is None:
            raise JobFailed(job)
        attempts = self._attempts()
        with PartialDownload(Path(path), job.result) as part:
            while not part.complete():
                try:
                    response = await self._send(protocol.RESULT, job, headers=part.headers())
                    async with aclosing(response):
                        part.begin(response)
                        async for chunk in response.aiter_bytes():
                            if part.write(chunk):
                                attempts.reset()
                        part.end()
                except httpx.TransportError as error:
                    await self._sleep(attempts.pause_after(self._outage(error)))
            part.keep()
        return job

    async def upscale(
        self,
        image: Image,
        target: Path | str,
        on_progress: Callable[[Job], Any] | None = None,
        timeout: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> Job:
        """See `Client.upscale`."""
        if parameters.get("output_format") is None:
            parameters["output_format"] = format_of(Path(target))
        job = await self.submit(image, **parameters)
        try:
            job = await self.wait(job, on_progress, timeout)
        except (JobFailed, Unreachable, GeneratorExit):
            raise
        except BaseException:  # a canceled task too: the result will not be fetched
            with suppress(httpx.TransportError):
                await self._http.delete(protocol.CANCEL.path_of(job), timeout=protocol.CANCEL_S)
            raise
        return await self.download(job, target)

    async def _poll(self, polling: Polling) -> bool:
        """See `Client._poll`."""
        await self._sleep(polling.pause())
        response = await self._send(protocol.POLL, polling.job, polling, headers=polling.headers())
        return self._read_poll(response, polling)

    async def _send(
        self, call: Call, job: Job | str = "", polling: Polling | None = None, **content: Any
    ) -> httpx.Response:
        """See `Client._send`."""
        attempts = self._attempts(polling)
        failure: Refused | Unreachable | None
        while True:
            request = self._request(call, job, polling, content)
            try:
                response = await self._http.send(request, stream=call.stream)
                if not response.is_success:
                    await response.aread()
            except httpx.TransportError as error:
                failure = self._outage(error)
            else:
                failure = self._refusal(call, response)
                if failure is None:
                    return response
            await self._sleep(attempts.pause_after(failure))


async def _call(on_progress: Callable[[Job], Any] | None, job: Job) -> None:
    outcome = None if on_progress is None else on_progress(job)
    if inspect.isawaitable(outcome):
        await outcome
