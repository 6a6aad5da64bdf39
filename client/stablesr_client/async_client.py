"""`AsyncClient`: the service for asyncio; `Client`, with every wait awaited."""

from __future__ import annotations

import inspect
import sys
from asyncio import sleep
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Self, Unpack

import httpx

from stablesr_client.errors import ClientError, JobFailed, Refused, Unreachable
from stablesr_client.files import Image, PartialDownload, format_of, image_file
from stablesr_client.protocol import CANCEL_S, NO_EVENTS, BaseClient, EventParser
from stablesr_client.retry import Polling, Retries, RetryPolicy
from stablesr_client.schema import Event, Job, JobPage, Models, Parameters


class AsyncClient(BaseClient):
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
    ) -> None:
        super().__init__(server, api_key, retry_policy)
        self._http: httpx.AsyncClient = httpx.AsyncClient(transport=transport, **self._options)

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
        with image_file(image, filename) as file:
            content = self._submission(file, parameters, idempotency_key)
            return self._read(Job, await self._send("POST", "/upscale", **content))

    async def get(self, job: Job | str) -> Job:
        """See `Client.get`."""
        return self._read(Job, await self._send("GET", self._path(job)))

    async def cancel(self, job: Job | str) -> Job:
        """See `Client.cancel`."""
        response = await self._send("DELETE", self._path(job), {409})
        return await self.get(job) if response.status_code == 409 else self._read(Job, response)

    async def models(self) -> Models:
        """See `Client.models`."""
        return self._read(Models, await self._send("GET", "/models"))

    async def jobs(
        self, state: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[Job, None]:
        """See `Client.jobs`; for `async for`."""
        remaining, page = sys.maxsize if limit is None else limit, JobPage(jobs=())
        while remaining > 0:
            params = self._page(state, page.next, remaining)
            page = self._read(JobPage, await self._send("GET", "/jobs", params=params))
            for job in page.jobs[:remaining]:
                yield job
            remaining = 0 if page.next is None else remaining - len(page.jobs)

    async def wait(
        self,
        job: Job | str,
        on_progress: Callable[[Job], Any] | None = None,
        timeout: float | None = None,
    ) -> Job:
        """See `Client.wait`."""
        job = await self.get(job) if isinstance(job, str) else job
        polling = Polling(job, self._policy, timeout)
        async with aclosing(self._changes(polling)) as changes:
            async for now in changes:
                outcome = None if on_progress is None else on_progress(now)
                if inspect.isawaitable(outcome):
                    await outcome
        if not polling.job.succeeded:
            raise JobFailed(polling.job)
        return polling.job

    async def events(
        self, job: Job | str, last_event_id: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """See `Client.events`; for `async for`, within `contextlib.aclosing` when left early."""
        job = await self.get(job) if isinstance(job, str) else job
        path, parser = self._path(job, "/events"), EventParser(last_event_id)
        retries = Retries(self._policy)
        while True:
            response = await self._send(
                "GET", path, NO_EVENTS, stream=True, headers=parser.headers()
            )
            async with aclosing(response):
                if response.status_code in NO_EVENTS:
                    break
                if response.status_code == 204:  # the caller's last event was the end
                    return
                retries.connect()
                parser.connect()
                failure: ClientError = Unreachable(
                    f"{self._server} ended the events before the job's end."
                )
                try:
                    async for chunk in response.aiter_bytes():
                        for event in self._read_events(parser, chunk, job):
                            retries.reset()
                            yield event
                            if event.name == "end":
                                return
                            job = event.job
                except httpx.TransportError as error:
                    failure = self._failure(error)
            await sleep(max(retries.pause_after(failure), parser.retry_s))
        polling = Polling(await self.get(job), self._policy)
        async with aclosing(self._changes(polling)) as changes:
            async for _ in changes:
                yield polling.event()

    async def download(self, job: Job | str, path: Path | str) -> Job:
        """See `Client.download`."""
        job = await self.get(job) if isinstance(job, str) or job.result is None else job
        if job.result is None:
            raise JobFailed(job)
        result, retries = self._path(job, "/result"), Retries(self._policy)
        with PartialDownload(Path(path), job.result) as part:
            while not part.is_complete():
                try:
                    response = await self._send(
                        "GET", result, {416}, stream=True, headers=part.headers()
                    )
                    async with aclosing(response):
                        part.begin(response)
                        async for chunk in response.aiter_bytes():
                            if part.write(chunk):
                                retries.reset()
                        part.end()
                except httpx.TransportError as error:
                    await sleep(retries.pause_after(self._failure(error)))
            part.rename()
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
                await self._http.delete(self._path(job), timeout=CANCEL_S)
            raise
        return await self.download(job, target)

    async def _changes(self, polling: Polling) -> AsyncGenerator[Job, None]:
        """See `Client._changes`."""
        yield polling.job
        while not polling.job.ended:
            await sleep(polling.limit(polling.pause_s))
            response = await self._send(
                "GET", self._path(polling.job), {304}, polling=polling, headers=polling.headers
            )
            if self._read_poll(response, polling):
                yield polling.job

    async def _send(
        self,
        method: str,
        path: str,
        accept: Collection[int] = (),
        *,
        stream: bool = False,
        polling: Polling | None = None,
        **content: Any,
    ) -> httpx.Response:
        """See `Client._send`."""
        retries = Retries(self._policy, polling)
        while True:
            try:
                request = self._request(method, path, polling, content)
                response = await self._http.send(request, stream=stream)
                if not response.is_success:
                    await response.aread()
                self._check(response, accept)
                return response
            except (httpx.TransportError, Refused) as error:
                await sleep(retries.pause_after(self._failure(error)))
