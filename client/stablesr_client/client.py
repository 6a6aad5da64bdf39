"""`Client`, the service for ordinary, blocking code, and `AsyncClient`, for asyncio."""

from __future__ import annotations

from asyncio import sleep as async_sleep
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, closing
from functools import wraps
from time import sleep
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from .protocol import BODY, Calls
from .retry import RetryPolicy
from .schema import Event, Job

P = ParamSpec("P")
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


def _blocking(
    call: Callable[Concatenate[Calls, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    """The method of `Client` that is this call, with its arguments and its documentation."""

    @wraps(call)
    def method(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _run(call(client._calls, *args, **kwargs))

    return method


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

    submit = _blocking(Calls.submit)
    get = _blocking(Calls.get)
    cancel = _blocking(Calls.cancel)
    delete = _blocking(Calls.delete)
    models = _blocking(Calls.models)
    wait = _blocking(Calls.wait)
    download = _blocking(Calls.download)
    upscale = _blocking(Calls.upscale)

    def jobs(self, state: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """The jobs of this key, newest first, requested page by page while they are read.

        Args:
            state: only those in it.
            limit: at most so many.
        """
        return _iterate(self._calls.jobs(state, limit))

    def events(self, job: Job | str, last_event_id: str | None = None) -> Iterator[Event]:
        """The changes of a job, as they happen, until its end; a cut stream is resumed.

        A server without events is polled instead. Events up to `last_event_id` are left out.
        """
        return _iterate(self._calls.events(job, last_event_id))


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
