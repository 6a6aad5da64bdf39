"""Transports that lose answers on their way, for both clients, over real connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx

__all__ = ["CutAsyncTransport", "CutTransport", "Cuts"]


@dataclass
class Cuts:
    """What is lost, each once: `path` ends so -> after how many bytes of the answer's body.

    None loses the whole answer. `seen` has every request that went out.
    """

    after: dict[str, int | None] = field(default_factory=dict)
    seen: list[httpx.Request] = field(default_factory=list)

    def take(self, request: httpx.Request) -> tuple[bool, int | None]:
        """Whether this request's answer is lost, and after how many bytes."""
        self.seen.append(request)
        for end in self.after:
            if request.url.path.endswith(end):
                return True, self.after.pop(end)
        return False, None


class _Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response, left: int) -> None:
        self._response = response
        self._left = left

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._response.iter_raw():
            yield self._cut(chunk)
            self._check()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_raw():
            yield self._cut(chunk)
            self._check()

    def _check(self) -> None:
        if self._left <= 0:
            raise httpx.ReadError("cut")

    def _cut(self, chunk: bytes) -> bytes:
        kept = chunk[: self._left]
        self._left -= len(chunk)
        return kept

    def close(self) -> None:
        self._response.close()

    async def aclose(self) -> None:
        await self._response.aclose()


class CutTransport(httpx.HTTPTransport):
    def __init__(self, cuts: Cuts) -> None:
        super().__init__()
        self._cuts = cuts

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        cut, after = self._cuts.take(request)
        response = super().handle_request(request)
        if not cut:
            return response
        if after is None:
            response.read()
            response.close()
            raise httpx.ReadError("lost")
        return httpx.Response(
            response.status_code, headers=response.headers, stream=_Stream(response, after)
        )


class CutAsyncTransport(httpx.AsyncHTTPTransport):
    def __init__(self, cuts: Cuts) -> None:
        super().__init__()
        self._cuts = cuts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        cut, after = self._cuts.take(request)
        response = await super().handle_async_request(request)
        if not cut:
            return response
        if after is None:
            await response.aread()
            await response.aclose()
            raise httpx.ReadError("lost")
        return httpx.Response(
            response.status_code, headers=response.headers, stream=_Stream(response, after)
        )
