"""`Client`, the service for ordinary, blocking code, and `AsyncClient`, for asyncio."""

from __future__ import annotations

from asyncio import sleep as async_sleep
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from time import sleep
from typing import Any, Self, TypeVar, Unpack

import httpx

from .files import Image
from .protocol import BODY, Calls
from .retry import RetryPolicy
from .schema import Event, Job, Models, Parameters

T = TypeVar("T")


class _BlockingCalls(Calls):
    """The calls over a blocking connection: their coroutines never suspend."""

    http: httpx.Client

    async def _sleep(self, seconds: float) -> None:
        sleep(seconds)

    async def _transmit(self, request: httpx.Request, stream: bool) -> httpx.Response:
        response = self.http.send(request, stream=stream, follow_redirects=stream)
        if response.status_code not in BODY:
            response.read()
        return response

    async def _chunks(
        self, response: httpx.Response, begin: Callable[[httpx.Response], object] = id
    ) -> AsyncGenerator[bytes, None]:
        with closing(response):
            begin(response)
            for chunk in response.iter_bytes():
                yield chunk


def _run(call: Coroutine[Any, Any, T]) -> T:
    """The outcome of a call that never suspends: one step is all of it."""
    try:
        call.send(None)
    except StopIteration as end:
        outcome: T = end.value
        return outcome
    raise TypeError("on_progress of a Client cannot be a coroutine function; AsyncClient's can.")


def _iterate(items: AsyncGenerator[T, None]) -> Iterator[T]:
    try:
        while True:
            try:
                item = _run(anext(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        _run(items.aclose())


class Client:
    """A client of one server; safe to share between threads, closed by its `with` block.

    All calls raise Unreachable when no server answers and Refused when it refuses, for longer than
    the retry policy allows; `stablesr_client.errors` has all errors. A job may be given by its id.

    Args:
        server: its address, such as "http://127.0.0.1:8000".
        api_key: sent as `Authorization: Bearer`.
        retry_policy: how long it tries again when the server is away or full.
        transport: in place of the network, for tests.

    Raises:
        ValueError: the address is none, or the key holds characters that cannot be sent.
    """

    def __init__(
        self,
        server: str,
        *,
        api_key: str | None = None,
        retry_policy: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._calls = _BlockingCalls(server, api_key, retry_policy)
        self._calls.http = httpx.Client(transport=transport, **self._calls.options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._calls.http.close()

    def submit(
        self,
        image: Image,
        *,
        filename: str | None = None,
        idempotency_key: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> Job:
        """Uploads an image as a new job.

        It is sent again when the answer was lost or the server is full: the `Idempotency-Key`,
        drawn for each call unless given, keeps that from making a second job.

        Args:
            image: a path, whose file is streamed from the disk; or the content; or an open file,
                read from its beginning (and into memory, if it cannot be read twice).
            filename: a name in place of the file's own; results are named after it.
            parameters: as `POST /upscale` takes them.

        Raises:
            OSError: the file cannot be read.
        """
        return _run(
            self._calls.submit(
                image, filename=filename, idempotency_key=idempotency_key, **parameters
            )
        )

    def get(self, job: Job | str) -> Job:
        """The job as it is now."""
        return _run(self._calls.get(job))

    def cancel(self, job: Job | str) -> Job:
        """Cancels a job; a running one stops at its next step, one that has ended stays so."""
        return _run(self._calls.cancel(job))

    def delete(self, job: Job | str) -> Job:
        """Removes the images of a job that has ended, which is expired then if it had succeeded;
        cancels one that has not."""
        return _run(self._calls.delete(job))

    def models(self) -> Models:
        """The presets, their defaults, limits and licences, and which are served now."""
        return _run(self._calls.models())

    def jobs(self, state: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """The jobs of this key, newest first, requested page by page while they are read.

        Args:
            state: only those in it.
            limit: at most so many.
        """
        return _iterate(self._calls.jobs(state, limit))

    def wait(
        self,
        job: Job | str,
        on_progress: Callable[[Job], Any] | None = None,
        timeout: float | None = None,
    ) -> Job:
        """Polls until a job has succeeded, as often as the server suggests.

        Args:
            on_progress: called with the job as it is at first and after every change.
            timeout: seconds after which to give up waiting; the job goes on.

        Raises:
            JobFailed: it ended in any other way.
            TimedOut: the timeout is over.
        """
        return _run(self._calls.wait(job, on_progress, timeout))

    def events(self, job: Job | str, last_event_id: str | None = None) -> Iterator[Event]:
        """The changes of a job, as they happen, until its end; a cut stream is resumed.

        A server without events is polled instead. Events up to `last_event_id` are left out.
        """
        return _iterate(self._calls.events(job, last_event_id))

    def download(self, job: Job | str, path: Path | str) -> Job:
        """Writes the result of a job that has succeeded to a file.

        The file is written aside and renamed when it is complete and its sha256 is right; a cut
        download resumes where it was cut.

        Raises:
            JobFailed: the job has no result.
            DownloadFailed: other bytes arrive than the job announced, twice.
            OSError: the file cannot be written.
        """
        return _run(self._calls.download(job, path))

    def upscale(
        self,
        image: Image,
        target: Path | str,
        on_progress: Callable[[Job], Any] | None = None,
        timeout: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> Job:
        """Submits an image, waits for it and writes the result to `target`.

        The format is that of `target`'s suffix, unless `output_format` is given. When waiting ends
        in any other way than with the job's own end, by Ctrl-C too, the job is canceled.

        Raises:
            ValueError: the suffix is none of a format.
            ClientError, OSError: as `submit`, `wait` and `download`.
        """
        return _run(self._calls.upscale(image, target, on_progress, timeout, **parameters))


class AsyncClient(Calls):
    """`Client` with the same methods to be awaited, for any number of tasks.

    `on_progress` may be a coroutine function. A task that is canceled while it waits in `upscale`
    cancels its job on the server. Files are read and written in the event loop's own thread, in
    pieces of 64 KiB.
    """

    http: httpx.AsyncClient

    def __init__(
        self,
        server: str,
        *,
        api_key: str | None = None,
        retry_policy: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(server, api_key, retry_policy)
        self.http = httpx.AsyncClient(transport=transport, **self.options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self.http.aclose()

    async def _sleep(self, seconds: float) -> None:
        await async_sleep(seconds)

    async def _transmit(self, request: httpx.Request, stream: bool) -> httpx.Response:
        response = await self.http.send(request, stream=stream, follow_redirects=stream)
        if response.status_code not in BODY:
            await response.aread()
        return response

    async def _chunks(
        self, response: httpx.Response, begin: Callable[[httpx.Response], object] = id
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(response):
            begin(response)
            async for chunk in response.aiter_bytes():
                yield chunk
