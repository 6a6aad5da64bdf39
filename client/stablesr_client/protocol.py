"""What both clients share: a server's address, its requests, and what its answers mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from stablesr_client.errors import (
    Busy,
    NotFound,
    Refused,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
)
from stablesr_client.events import EventParser
from stablesr_client.retry import Attempts, Clock, Polling, RetryPolicy, retry_after_s
from stablesr_client.schema import Event, Job, JobPage, Problem, Progress

__all__ = ["CANCEL_S", "NO_EVENTS", "Call", "Protocol", "list_params"]

M = TypeVar("M", bound=BaseModel)

SILENCE_S = 60.0
"""How long a server may be silent, such as while it takes in an upload."""
CONNECT_S = 10.0
CANCEL_S = 5.0
"""How long the cancellation of a caller who is being interrupted may take."""
SHORTEST_S = 0.1
"""The least time for a request, however near the end of a timeout is."""
PAGE_SIZE = 100

# The same request may be answered otherwise later.
TRANSIENT = frozenset({408, 429, 502, 503, 504})
# How a server without events answers, or one with too many streams open. 404 may also mean that
# it does not know the job, which polling will show.
NO_EVENTS = frozenset({404, 405, 406, 429, 501})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
REFUSALS: Mapping[int, type[Refused]] = {
    **{401: Unauthorized, 403: Unauthorized, 404: NotFound, 410: NotFound},
    **{429: Busy, 503: Busy},
}


@dataclass(frozen=True)
class Call:
    """A call of the service's HTTP interface.

    `accept` are the statuses beside success that the caller understands, `retry_on` those after
    which it is sent again. With `stream` the body of a success is left to be read.
    """

    method: str
    path: str
    accept: frozenset[int] = frozenset()
    retry_on: frozenset[int] = TRANSIENT
    stream: bool = False

    def path_of(self, job: Job | str) -> str:
        """The path for a job, given by itself or its id."""
        return self.path.format(id=quote(job if isinstance(job, str) else job.id, safe=""))


# With Retry-After, 409 means that the first submission under its key is being worked on.
SUBMIT = Call("POST", "/upscale", retry_on=TRANSIENT | {409})
LIST = Call("GET", "/jobs")
MODELS = Call("GET", "/models")
GET = Call("GET", "/jobs/{id}")
# While a job is waited for, one answer 500 is no reason to give it up.
POLL = Call("GET", "/jobs/{id}", accept=frozenset({304}), retry_on=TRANSIENT | {500})
EVENTS = Call("GET", "/jobs/{id}/events", NO_EVENTS, TRANSIENT | {500}, stream=True)
CANCEL = Call("DELETE", "/jobs/{id}", accept=frozenset({409}))
RESULT = Call("GET", "/jobs/{id}/result", accept=frozenset({416}), stream=True)


class Protocol:
    """A client without its sending; the arguments are those of `Client`."""

    _http: httpx.Client | httpx.AsyncClient

    def __init__(
        self,
        server: str,
        api_key: str | None,
        retry_policy: RetryPolicy | None,
        now: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        try:
            url = httpx.URL(server)
        except httpx.InvalidURL as error:
            raise ValueError(f"{server} is no address: {error}.") from error
        if url.scheme not in ("http", "https") or not url.host:
            example = "http://127.0.0.1:8000"
            raise ValueError(
                f"{server}: an address begins with http:// or https://, such as {example}."
            )
        headers = {"Accept": "application/json, application/problem+json"}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable()):
                raise ValueError("The API key holds characters that no key has.")
            headers["Authorization"] = f"Bearer {api_key}"
        self._server = str(url.copy_with(userinfo=b"")).rstrip("/")
        self._answered = False
        """Whether the server has ever answered."""
        self._policy = retry_policy or RetryPolicy()
        self._clock = Clock(now, chance)
        self._options: dict[str, Any] = {
            "base_url": url,
            "headers": headers,
            # A proxy of the environment cannot reach this machine's own loopback address.
            "trust_env": url.scheme == "https" or url.host not in LOOPBACK,
        }

    def _attempts(self, polling: Polling | None = None) -> Attempts:
        return Attempts(self._policy, self._clock, polling)

    def _polling(self, job: Job, timeout: float | None = None) -> Polling:
        return Polling(job, self._policy, self._clock, timeout)

    def _request(
        self, call: Call, job: Job | str, polling: Polling | None, content: Mapping[str, Any]
    ) -> httpx.Request:
        """The request of a call, which does not outlast the polling's timeout."""
        left_s = SILENCE_S if polling is None else polling.left_s()
        silence_s = min(max(left_s, SHORTEST_S), SILENCE_S)
        timeout = httpx.Timeout(silence_s, connect=min(silence_s, CONNECT_S))
        return self._http.build_request(call.method, call.path_of(job), timeout=timeout, **content)

    def _outage(self, error: httpx.TransportError) -> Unreachable:
        """A broken connection as an error of the client.

        Raises:
            Unreachable: it is final. Where no server has ever answered, the address is more
                likely wrong than its server away; and what is wrong with a request stays so.
        """
        reason = str(error) or type(error).__name__
        outage = Unreachable(f"No server answers at {self._server} ({reason}).")
        outage.__cause__ = error
        passing = httpx.NetworkError | httpx.TimeoutException | httpx.RemoteProtocolError
        if not isinstance(error, passing) or (
            isinstance(error, httpx.ConnectError) and not self._answered
        ):
            raise outage
        return outage

    def _refusal(self, call: Call, response: httpx.Response) -> Refused | None:
        """A refusal after which to try again; None for a success or an accepted status.

        Raises:
            Refused: it is final.
        """
        self._answered = True
        status = response.status_code
        if response.is_success or status in call.accept:
            return None
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            problem = Problem()
        answer = f"{self._server} answered {status} {response.reason_phrase}".strip()
        retry_after = retry_after_s(response.headers.get("Retry-After"))
        fields = {"title": problem.title or answer, "status": status, "retry_after": retry_after}
        refusal = REFUSALS.get(status, Refused)(problem.model_copy(update=fields))
        # The service itself (not a proxy) that names no time will not change its answer.
        if status not in call.retry_on or (problem.slug and retry_after is None):
            raise refusal
        return refusal

    def _read(self, model: type[M], answer: httpx.Response | str) -> M:
        try:
            return model.model_validate_json(answer if isinstance(answer, str) else answer.content)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise UnexpectedAnswer(
                f"{self._server} answered something else than this service does ({fault})."
            ) from error

    def _read_poll(self, response: httpx.Response, polling: Polling) -> bool:
        """Whether the job has changed."""
        same = response.status_code == 304
        return polling.update(None if same else self._read(Job, response), response.headers)

    def _read_events(self, parser: EventParser, chunk: bytes, job: Job) -> Iterator[Event]:
        """The events that the next bytes of a stream complete, for the job as it was before."""
        for event in parser.feed(chunk):
            if event.name == "progress":
                progress = self._read(Progress, event.data)
                job = job.model_copy(update={"progress": progress})
            elif event.name in ("state", "end"):
                job = self._read(Job, event.data)
            else:
                continue
            yield Event(name=event.name, job=job, id=event.id)


def list_params(state: str | None, left: int, page: JobPage | None) -> dict[str, str]:
    """The query for the page after another, with at most as many jobs as are left to list."""
    cursor = None if page is None else page.next
    params = {"state": state, "cursor": cursor, "limit": str(min(left, PAGE_SIZE))}
    return {name: value for name, value in params.items() if value is not None}
