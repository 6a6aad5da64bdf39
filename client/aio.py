"""`AsyncClient`: the service for asyncio."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from client.effects import Call, Chunk, Effect, Emit, Operation, Run, Send, Sleep
from client.http import request_of, settings
from client.image import Image
from client.operations import Operations
from client.retry import Clock, Patience
from client.schema import Event, Job, Models, Parameters

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """`client.sync.Client` with the same methods to be awaited, for as many tasks as like.

    `on_progress` may be a coroutine function. A task that is canceled while it waits in `upscale`
    cancels its job on the server. Files are read and written in the event loop's own thread, in
    pieces of 64 KiB.
    """

    def __init__(
        self,
        server: str,
        *,
        api_key: str | None = None,
        patience: Patience | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        name, given = settings(server, api_key)
        self._http = httpx.AsyncClient(transport=transport, **given)
        self._do = Operations(name, patience or Patience(), Clock(now, chance))
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        return await self._run(
            self._do.submit(image, parameters, filename=filename, key=idempotency_key)
        )

    async def get(self, job: Job | str) -> Job:
        """See `Client.get`."""
        return await self._run(self._do.get(job))

    async def wait(
        self,
        job: Job | str,
        on_progress: Callable[[Job], Any] | None = None,
        timeout: float | None = None,
    ) -> Job:
        """See `Client.wait`."""
        return await self._run(self._do.wait(job, on_progress, timeout))

    def events(
        self, job: Job | str, last_event_id: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """See `Client.events`; for `async for`, within `contextlib.aclosing` when left early."""
        return self._drive(Run(self._do.events(job, last_event_id)))

    async def download(self, job: Job | str, path: Path | str) -> Job:
        """See `Client.download`."""
        return await self._run(self._do.download(job, Path(path)))

    async def cancel(self, job: Job | str) -> Job:
        """See `Client.cancel`."""
        return await self._run(self._do.cancel(job))

    def jobs(self, state: str | None = None, limit: int | None = None) -> AsyncGenerator[Job, None]:
        """See `Client.jobs`; for `async for`."""
        return self._drive(Run(self._do.jobs(state, limit)))

    async def models(self) -> Models:
        """See `Client.models`."""
        return await self._run(self._do.models())

    async def upscale(
        self,
        image: Image,
        target: Path | str,
        on_progress: Callable[[Job], Any] | None = None,
        timeout: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> Job:
        """See `Client.upscale`."""
        return await self._run(
            self._do.upscale(image, Path(target), parameters, on_progress, timeout)
        )

    async def _run(self, operation: Operation[T]) -> T:
        run = Run(operation)
        async for _ in self._drive(run):
            raise AssertionError("only calls that are iterated emit")
        return run.value

    async def _drive(self, run: Run[Any]) -> AsyncGenerator[Any, None]:
        body = _Body()
        try:
            effect = run.next()
            while effect is not None:
                try:
                    outcome: Any = None
                    if isinstance(effect, Emit):
                        yield effect.item
                    else:
                        outcome = await self._perform(effect, body)
                # The operation decides about all of them, and may still have to clean up.
                except BaseException as error:
                    effect = run.next(error=error)
                else:
                    effect = run.next(outcome)
        finally:
            await body.close()

    async def _perform(self, effect: Effect, body: _Body) -> Any:
        match effect:
            case Send():
                await body.close()
                request = request_of(self._http, effect)
                response = await self._http.send(request, stream=effect.stream)
                if effect.stream:
                    await body.take(response)
                return response
            case Chunk():
                return await anext(body.chunks, None)
            case Sleep():
                await self._sleep(effect.seconds)
            case Call():
                outcome = effect.function(effect.argument)
                if inspect.isawaitable(outcome):
                    await outcome
        return None


class _Body:
    """The response whose body is being read, if any."""

    def __init__(self) -> None:
        self._response: httpx.Response | None = None
        self.chunks: AsyncIterator[bytes]

    async def take(self, response: httpx.Response) -> None:
        """Reads an error's body at once, and a success's as it is asked for."""
        self._response = response
        self.chunks = response.aiter_bytes()
        if not response.is_success:
            await response.aread()

    async def close(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None
