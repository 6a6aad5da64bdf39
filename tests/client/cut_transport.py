"""A transport that loses responses on their way, for both clients, over real connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx


class CutTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Loses one response for each entry of `cuts`: its path ends so -> after so many bytes."""

    def __init__(self) -> None:
        self.cuts: dict[str, int] = {}
        self.requests: list[httpx.Request] = []
        self._sync, self._async = httpx.HTTPTransport(), httpx.AsyncHTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._cut(request, self._sync.handle_request(request))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self._cut(request, await self._async.handle_async_request(request))

    def close(self) -> None:
        self._sync.close()

    async def aclose(self) -> None:
        await self._async.aclose()

    def _cut(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        self.requests.append(request)
        for end in self.cuts:
            if request.url.path.endswith(end):
                stream = _Stream(response, self.cuts.pop(end))
                return httpx.Response(response.status_code, headers=response.headers, stream=stream)
        return response


class _Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response, size: int) -> None:
        self._response = response
        self._remaining = size

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._response.iter_raw():
            yield self._head(chunk)
            self._check()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_raw():
            yield self._head(chunk)
            self._check()

    def _head(self, chunk: bytes) -> bytes:
        head = chunk[: self._remaining]
        self._remaining -= len(head)
        return head

    def _check(self) -> None:
        if self._remaining <= 0:
            raise httpx.ReadError("cut")

    def close(self) -> None:
        self._response.close()

    async def aclose(self) -> None:
        await self._response.aclose()
