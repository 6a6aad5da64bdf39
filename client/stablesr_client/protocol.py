"""What a client does, written once, as coroutines: requests, and what the answers mean."""

from __future__ import annotations

import inspect
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar, Unpack
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from .errors import REFUSALS, ClientError, JobFailed, Refused, UnexpectedAnswer, Unreachable
from .files import Image, PartialDownload, format_of, image_file
from .retry import Polling, Retries, RetryPolicy, retry_after_s
from .schema import Event, EventParser, Job, JobPage, Models, Parameters, Problem, Progress

M = TypeVar("M", bound=BaseModel)

SILENCE_S = 60.0
"""How long a server may be silent, such as while it takes in an upload."""
CONNECT_S = 10.0
CANCEL_S = 5.0
"""How long the cancellation for an interrupted caller may take."""
SHORTEST_S = 0.1
"""The least time for a request, however near the timeout is."""
PAGE_SIZE = 100
BODY = frozenset({200, 206})
"""Statuses of a stream that has a body to read."""

# How a server without events answers, or one with too many streams open. 404 may also mean that
# it does not know the job, which polling will show.
NO_EVENTS = frozenset({404, 405, 406, 429, 501})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Calls(ABC):
    """The calls of both clients; only what a subclass adds, the sending and sleeping, can wait.

    The arguments are those of `Client`.
    """

    http: httpx.Client | httpx.AsyncClient

    def __init__(self, server: str, api_key: str | None, retry_policy: RetryPolicy | None) -> None:
        try:
            url = httpx.URL(server)
        except httpx.InvalidURL as error:
            raise ValueError(f"{server} is no address: {error}.") from error
        if url.scheme not in ("http", "https") or not url.host:
            forms = "http:// or https://, such as http://127.0.0.1:8000"
            raise ValueError(f"{server}: an address begins with {forms}.")
        headers = {"Accept": "application/json, application/problem+json"}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable()):
                raise ValueError("The API key holds characters that no key has.")
            headers["Authorization"] = f"Bearer {api_key}"
        self._server = str(url.copy_with(userinfo=b"")).rstrip("/")
        self._has_answered = False
        self._policy = retry_policy or RetryPolicy()
        self.options: dict[str, Any] = {
            "base_url": url,
            "headers": headers,
            # A proxy of the environment cannot reach this machine's own loopback address.
            "trust_env": url.scheme == "https" or url.host not in LOOPBACK,
        }

    @abstractmethod
    async def _sleep(self, seconds: float) -> None: ...

    @abstractmethod
    async def _transmit(self, request: httpx.Request, stream: bool) -> httpx.Response:
        """Sends a request once; of a stream only a body to be read in chunks is left unread."""

    @abstractmethod
    def _chunks(
        self, response: httpx.Response, begin: Callable[[httpx.Response], object] = id
    ) -> AsyncGenerator[bytes, None]:
        """The body of a stream, after `begin` had its head; it is closed at its end."""

    async def submit(
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
        with image_file(image, filename) as file:
            data = {name: str(value) for name, value in parameters.items() if value is not None}
            headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
            response = await self._send(
                "POST", "/upscale", headers=headers, data=data, files={"image": file}
            )
            return self._read(Job, response)

    async def get(self, job: Job | str) -> Job:
        """The job as it is now."""
        return self._read(Job, await self._send("GET", self._path(job)))

    async def cancel(self, job: Job | str) -> Job:
        """Cancels a job; a running one stops at its next step, one that has ended stays so."""
        now = await self.get(job)
        return now if now.ended else await self.delete(now)

    async def delete(self, job: Job | str) -> Job:
        """Removes the images of a job that has ended, which is expired then if it had succeeded;
        cancels one that has not."""
        response = await self._send("DELETE", self._path(job), {409})
        # A server of an older version, which removes nothing.
        return await self.get(job) if response.status_code == 409 else self._read(Job, response)

    async def models(self) -> Models:
        """The presets, their defaults, limits and licences, and which are served now."""
        return self._read(Models, await self._send("GET", "/models"))

    async def jobs(
        self, state: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[Job, None]:
        """See `Client.jobs`; for `async for`."""
        remaining, page = sys.maxsize if limit is None else limit, JobPage(jobs=())
        while remaining > 0:
            query = {"state": state, "cursor": page.next, "limit": min(remaining, PAGE_SIZE)}
            params = {name: value for name, value in query.items() if value is not None}
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
        """Polls until a job has succeeded, as often as the server suggests.

        Args:
            on_progress: called with the job as it is at first and after every change.
            timeout: seconds after which to give up waiting; the job goes on.

        Raises:
            JobFailed: it ended in any other way.
            TimedOut: the timeout is over.
        """
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
                async with aclosing(self._chunks(response)) as chunks:
                    async for chunk in chunks:
                        for name, data in parser.feed(chunk):
                            if name == "progress":
                                progress = self._read(Progress, data)
                                job = job.model_copy(update={"progress": progress})
                            elif name in ("state", "end"):
                                job = self._read(Job, data)
                            else:
                                continue
                            retries.reset()
                            yield Event(name=name, job=job, id=parser.last_id)
                            if name == "end":
                                return
            except httpx.TransportError as error:
                failure = self._failure(error)
            await self._sleep(max(retries.pause_after(failure), parser.retry_s))
        polling = Polling(await self.get(job), self._policy)
        async with aclosing(self._changes(polling)) as changes:
            async for _ in changes:
                yield polling.event()

    async def download(self, job: Job | str, path: Path | str) -> Job:
        """Writes the result of a job that has succeeded to a file.

        The file is written aside and renamed when it is complete and its sha256 is right; a cut
        download resumes where it was cut.

        Raises:
            JobFailed: the job has no result.
            DownloadFailed: other bytes arrive than the job announced, twice.
            OSError: the file cannot be written.
        """
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
                    async with aclosing(self._chunks(response, part.begin)) as chunks:
                        async for chunk in chunks:
                            if part.write(chunk):
                                retries.reset()
                    part.end()
                except httpx.TransportError as error:
                    await self._sleep(retries.pause_after(self._failure(error)))
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
        """Submits an image, waits for it and writes the result to `target`.

        The format is that of `target`'s suffix, unless `output_format` is given. When waiting ends
        in any other way than with the job's own end, by Ctrl-C too, the job is canceled.

        Raises:
            ValueError: the suffix is none of a format.
            ClientError, OSError: as `submit`, `wait` and `download`.
        """
        if parameters.get("output_format") is None:
            parameters["output_format"] = format_of(Path(target))
        job = await self.submit(image, **parameters)
        try:
            job = await self.wait(job, on_progress, timeout)
        except (JobFailed, Unreachable, GeneratorExit):
            raise
        except BaseException:  # a canceled task too: the result will not be fetched
            with suppress(httpx.TransportError):
                request = self.http.build_request("DELETE", self._path(job), timeout=CANCEL_S)
                await self._transmit(request, stream=False)
            raise
        return await self.download(job, target)

    async def _changes(self, polling: Polling) -> AsyncGenerator[Job, None]:
        """The job as it is, and as it is after each change until its end; it is polled."""
        yield polling.job
        while not polling.job.ended:
            await self._sleep(polling.limit(polling.pause_s))
            response = await self._send(
                "GET", self._path(polling.job), {304}, polling=polling, headers=polling.headers
            )
            job = None if response.status_code == 304 else self._read(Job, response)
            if polling.update(job, response.headers):
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
        """Sends a request until it succeeds or is accepted, or the polling times out."""
        retries = Retries(self._policy, polling)
        while True:
            # No request outlasts the polling's timeout.
            remaining_s = SILENCE_S if polling is None else polling.remaining_s()
            silence_s = min(max(remaining_s, SHORTEST_S), SILENCE_S)
            timeout = httpx.Timeout(silence_s, connect=min(silence_s, CONNECT_S))
            try:
                request = self.http.build_request(method, path, timeout=timeout, **content)
                response = await self._transmit(request, stream)
                self._check(response, accept)
                return response
            except (httpx.TransportError, Refused) as error:
                await self._sleep(retries.pause_after(self._failure(error)))

    @staticmethod
    def _path(job: Job | str, below: str = "") -> str:
        """The path of a job, given by itself or its id."""
        return f"/jobs/{quote(job if isinstance(job, str) else job.id, safe='')}{below}"

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
