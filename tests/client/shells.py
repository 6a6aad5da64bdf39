"""Both clients behind one blocking face, on a clock that only their own sleeping moves.

Iterators come as lists, `first` items of them at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from itertools import islice
from typing import Any, TypeVar

import pytest

from stablesr_client import AsyncClient, Client, Event, Job

T = TypeVar("T")
Each = Callable[[Event], object]
"""Called with every event as it comes."""


class FakeClock:
    """The clients' clock and dice: sleeping takes no time and is noted in `pauses`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pauses: list[float] = []
        self.chance = 0.0
        self.on_sleep: Callable[[], None] = lambda: None
        self._time = 1000.0
        monkeypatch.setattr("stablesr_client.retry.monotonic", lambda: self._time)
        monkeypatch.setattr("stablesr_client.retry.random", lambda: self.chance)
        monkeypatch.setattr("stablesr_client.client.sleep", self.sleep)
        monkeypatch.setattr("stablesr_client.client.async_sleep", self.async_sleep)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._time += seconds
        self.on_sleep()

    async def async_sleep(self, seconds: float) -> None:
        # Other tasks get their turn, as with the real one.
        await asyncio.sleep(0)
        self.sleep(seconds)


class SyncShell:
    def __init__(self, url: str, **options: Any) -> None:
        self._client = Client(url, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def events(
        self, *arguments: Any, each: Each = print, first: int | None = None, **options: Any
    ) -> list[Event]:
        events: list[Event] = []
        for event in islice(self._client.events(*arguments, **options), first):
            events.append(event)
            each(event)
        return events

    def jobs(self, *arguments: Any, first: int | None = None, **options: Any) -> list[Job]:
        return list(islice(self._client.jobs(*arguments, **options), first))


class AsyncShell:
    def __init__(self, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, **options)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            return self._runner.run(getattr(self._client, name)(*arguments, **options))

        return call

    def events(
        self, *arguments: Any, each: Each = print, first: int | None = None, **options: Any
    ) -> list[Event]:
        return self._runner.run(_collect(self._client.events(*arguments, **options), first, each))

    def jobs(self, *arguments: Any, first: int | None = None, **options: Any) -> list[Job]:
        return self._runner.run(_collect(self._client.jobs(*arguments, **options), first))

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


Shell = SyncShell | AsyncShell


async def _collect(
    items: AsyncGenerator[T, None], first: int | None, each: Callable[[T], object] = print
) -> list[T]:
    result: list[T] = []
    # A loop that is left early must close its generator.
    async with aclosing(items):
        async for item in items:
            result.append(item)
            each(item)
            if len(result) == first:
                break
    return result
