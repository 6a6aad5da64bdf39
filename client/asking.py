"""Asking until there is an answer, and reading it: what every operation begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from client.effects import Operation, Send, Sleep
from client.errors import Busy, NotFound, Refused, Unauthorized, UnexpectedAnswer, Unreachable
from client.http import SILENCE_S
from client.retry import AGAIN, Clock, Patience, Tries, retry_after_s
from client.schema import Problem

__all__ = ["Asking"]

T = TypeVar("T")

REFUSALS: Mapping[int, type[Refused]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    410: NotFound,
    429: Busy,
    503: Busy,
}


SHORTEST_S = 0.1
"""What a request is given at least, however near the deadline is."""


class Asking:
    """One server, as operations ask it.

    Args:
        server: what messages call it.
    """

    def __init__(self, server: str, patience: Patience, clock: Clock) -> None:
        self.server = server
        self._patience = patience
        self._clock = clock
        self._met = False
        """Whether it has ever answered."""

    def _ask(
        self,
        request: Send,
        *,
        accept: frozenset[int] = frozenset(),
        again: frozenset[int] = AGAIN,
        deadline: float | None = None,
    ) -> Operation[httpx.Response]:
        """Sends until there is an answer that is a success or one of `accept`.

        Raises:
            Unreachable, Refused: there is none, for longer than patience lasts.
            OutOfTime: the deadline has come.
        """
        tries = Tries(self._patience, self._clock, deadline)
        while True:
            if deadline is not None:
                left = max(deadline - self._clock.now(), SHORTEST_S)
                request = replace(request, timeout_s=min(left, SILENCE_S))
            try:
                response: httpx.Response = yield request
            except httpx.TransportError as error:
                unreachable = self._unreachable(error)
                # Where nobody has ever answered, the address is more likely wrong than its
                # server away; and what is wrong with the request itself stays so.
                passing = isinstance(error, httpx.NetworkError | httpx.TimeoutException)
                if not (passing or isinstance(error, httpx.RemoteProtocolError)) or (
                    isinstance(error, httpx.ConnectError) and not self._met
                ):
                    raise unreachable from error
                pause = tries.pause_after(unreachable)
            else:
                self._met = True
                if response.is_success or response.status_code in accept:
                    return response
                pause = tries.pause_after(self._refused(response), again=again)
            yield Sleep(pause)

    def _read(self, kind: TypeAdapter[T], response: httpx.Response | str) -> T:
        content = response if isinstance(response, str) else response.content
        try:
            return kind.validate_json(content)
        except ValidationError as error:
            what = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise UnexpectedAnswer(
                f"{self.server} answered something else than this service does ({what})."
            ) from error

    def _refused(self, response: httpx.Response) -> Refused:
        try:
            members = response.json()
        except ValueError:
            members = None
        status = response.status_code
        problem = Problem.of(
            members if isinstance(members, dict) else {},
            title=f"{self.server} answered {status} {response.reason_phrase}".strip(),
            status=status,
            retry_after=retry_after_s(response.headers.get("Retry-After")),
        )
        return REFUSALS.get(status, Refused)(problem)

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        reason = str(error) or type(error).__name__
        return Unreachable(f"No server answers at {self.server} ({reason}).")
