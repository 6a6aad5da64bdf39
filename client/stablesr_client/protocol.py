"""What both clients share: a server's address, its requests, and what its responses mean."""

from __future__ import annotations

import codecs
import io
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from stablesr_client.errors import (
    Busy,
    ClientError,
    NotFound,
    Refused,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
)
from stablesr_client.retry import Polling, RetryPolicy, retry_after_s
from stablesr_client.schema import Event, Job, Problem, Progress

M = TypeVar("M", bound=BaseModel)

SILENCE_S = 60.0
"""How long a server may be silent, such as while it takes in an upload."""
CONNECT_S = 10.0
CANCEL_S = 5.0
"""How long the cancellation for an interrupted caller may take."""
SHORTEST_S = 0.1
"""The least time for a request, however near the timeout is."""
PAGE_SIZE = 100

# How a server without events answers, or one with too many streams open. 404 may also mean that
# it does not know the job, which polling will show.
NO_EVENTS = frozenset({404, 405, 406, 429, 501})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
REFUSALS: Mapping[int, type[Refused]] = {
    **{401: Unauthorized, 403: Unauthorized, 404: NotFound, 410: NotFound},
    **{429: Busy, 503: Busy},
}


class BaseClient:
    """A client without its sending; the arguments are those of `Client`."""

    _http: httpx.Client | httpx.AsyncClient

    def __init__(self, server: str, api_key: str | None, retry_policy: RetryPolicy | None) -> None:
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
        self._has_answered = False
        """Whether the server ever has."""
        self._policy = retry_policy or RetryPolicy()
        self._options: dict[str, Any] = {
            "base_url": url,
            "headers": headers,
            # A proxy of the environment cannot reach this machine's own loopback address.
            "trust_env": url.scheme == "https" or url.host not in LOOPBACK,
        }

    @staticmethod
    def _path(job: Job | str, below: str = "") -> str:
        """The path of a job, given by itself or its id."""
        return f"/jobs/{quote(job if isinstance(job, str) else job.id, safe='')}{below}"

    @staticmethod
    def _page(state: str | None, cursor: str | None, remaining: int) -> dict[str, Any]:
        """The query for a page of the list of jobs."""
        params = {"state": state, "cursor": cursor, "limit": min(remaining, PAGE_SIZE)}
        return {name: value for name, value in params.items() if value is not None}

    @staticmethod
    def _submission(
        file: tuple[str, BinaryIO], parameters: Mapping[str, Any], key: str | None
    ) -> dict[str, Any]:
        """The content of an upload; its Idempotency-Key is drawn unless given."""
        data = {name: str(value) for name, value in parameters.items() if value is not None}
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return {"headers": headers, "data": data, "files": {"image": file}}

    def _request(
        self, method: str, path: str, polling: Polling | None, content: Mapping[str, Any]
    ) -> httpx.Request:
        """A request that does not outlast the polling's timeout."""
        remaining_s = SILENCE_S if polling is None else polling.remaining_s()
        silence_s = min(max(remaining_s, SHORTEST_S), SILENCE_S)
        timeout = httpx.Timeout(silence_s, connect=min(silence_s, CONNECT_S))
        return self._http.build_request(method, path, timeout=timeout, **content)

    def _failure(self, error: httpx.TransportError | Refused) -> ClientError:
        """A refusal as it is, a broken connection as Unreachable; raises one that is final.

        Where no server has ever answered, the address is more likely wrong than its server away;
        and what is wrong with a request stays so.
        """
        if isinstance(error, Refused):
            return error
        reason = str(error) or type(error).__name__
        outage = Unreachable(f"No server answers at {self._server} ({reason}).")
        outage.__cause__ = error
        passing = httpx.NetworkError | httpx.TimeoutException | httpx.RemoteProtocolError
        is_unknown = isinstance(error, httpx.ConnectError) and not self._has_answered
        if is_unknown or not isinstance(error, passing):
            raise outage
        return outage

    def _check(self, response: httpx.Response, accept: Collection[int]) -> None:
        """Raises Refused, unless it is a success or a status that the caller accepts."""
        self._has_answered = True
        status = response.status_code
        if response.is_success or status in accept:
            return
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            problem = Problem()
        answer = f"{self._server} answered {status} {response.reason_phrase}".strip()
        retry_after = retry_after_s(response.headers.get("Retry-After"))
        fields = {"title": problem.title or answer, "status": status, "retry_after": retry_after}
        raise REFUSALS.get(status, Refused)(problem.model_copy(update=fields))

    def _read(self, model: type[M], source: httpx.Response | str) -> M:
        content = source.content if isinstance(source, httpx.Response) else source
        try:
            return model.model_validate_json(content)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise UnexpectedAnswer(
                f"{self._server} answered something else than this service does ({fault})."
            ) from error

    def _read_poll(self, response: httpx.Response, polling: Polling) -> bool:
        """Whether the job has changed."""
        job = None if response.status_code == 304 else self._read(Job, response)
        return polling.update(job, response.headers)

    def _read_events(self, parser: EventParser, chunk: bytes, job: Job) -> Iterator[Event]:
        """The events that the next bytes of a stream complete, for the job as it was before."""
        for name, data in parser.feed(chunk):
            if name == "progress":
                job = job.model_copy(update={"progress": self._read(Progress, data)})
            elif name in ("state", "end"):
                job = self._read(Job, data)
            else:
                continue
            yield Event(name=name, job=job, id=parser.last_id)


class EventParser:
    """Parses Server-Sent Events (HTML Living Standard, 9.2) from bytes, however they are cut.

    `last_id` and `retry_s`, the pause before a new connection, outlive a connection.
    """

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.retry_s = 0.0
        self.connect()

    def connect(self) -> None:
        """A connection begins: drops the unfinished event of the last one."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        # Not httpx's lines, which end at any of Unicode's separators.
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._line, self._id, self._name = "", self.last_id, ""
        self._data: list[str] = []

    def headers(self) -> dict[str, str]:
        """The headers of a request for the events after the last one."""
        resume = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        return {"Accept": "text/event-stream", **resume}

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """Name and data of each event that these bytes complete; `last_id` is then its id."""
        *lines, self._line = (self._line + self._decoder.decode(chunk)).split("\n")
        for line in lines:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                # Only now: an event that is cut off has to be sent again.
                self.last_id = self._id
                if self._data:
                    yield self._name or "message", "\n".join(self._data)
                self._name, self._data = "", []
            elif name == "data":
                self._data.append(value)
            elif name == "event":
                self._name = value
            elif name == "id" and "\0" not in value:
                self._id = value
            elif name == "retry" and value.isascii() and value.isdigit():
                self.retry_s = int(value) / 1000
