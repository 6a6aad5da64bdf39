"""`Client`: the service for ordinary, blocking code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from pathlib import Path
from time import sleep
from typing import Any, Self, Unpack

import httpx

from stablesr_client.errors import ClientError, JobFailed, Refused, Unreachable
from stablesr_client.files import Image, PartialDownload, format_of, image_file
from stablesr_client.protocol import CANCEL_S, NO_EVENTS, BaseClient, EventParser
from stablesr_client.retry import Polling, Retries, RetryPolicy
from stablesr_client.schema import Event, Job, JobPage, Models, Parameters


class Client(BaseClient):
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
        super().__init__(server, api_key, retry_policy)
        self._http: httpx.Client = httpx.Client(transport=transport, **self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

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
        with image_file(image, filename) as file:
            content = self._submission(file, parameters, idempotency_key)
            return self._read(Job, self._send("POST", "/upscale", **content))

    def get(self, job: Job | str) -> Job:
        """The job as it is now."""
        return self._read(Job, self._send("GET", self._path(job)))

    def cancel(self, job: Job | str) -> Job:
        """Cancels a job; a running one stops at its next step, one that has ended stays so."""
        response = self._send("DELETE", self._path(job), {409})
        return self.get(job) if response.status_code == 409 else self._read(Job, response)

    def models(self) -> Models:
        """The presets, their defaults, limits and licences, and which are served now."""
        return self._read(Models, self._send("GET", "/models"))

    def jobs(self, state: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """The jobs of this key, newest first, requested page by page while they are read.

        Args:
            state: only those in it.
            limit: at most so many.
        """
        remaining, page = sys.maxsize if limit is None else limit, JobPage(jobs=())
        while remaining > 0:
            params = self._page(state, page.next, remaining)
            page = self._read(JobPage, self._send("GET", "/jobs", params=params))
            yield from page.jobs[:remaining]
            remaining = 0 if page.next is None else remaining - len(page.jobs)

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
        job = self.get(job) if isinstance(job, str) else job
        polling = Polling(job, self._policy, timeout)
        for now in self._changes(polling):
            if on_progress is not None:
                on_progress(now)
        if not polling.job.succeeded:
            raise JobFailed(polling.job)
        return polling.job

    def events(self, job: Job | str, last_event_id: str | None = None) -> Iterator[Event]:
        """The changes of a job, as they happen, until its end; a cut stream is resumed.

        A server without events is polled instead. Events up to `last_event_id` are left out.
        """
        job = self.get(job) if isinstance(job, str) else job
        path, parser = self._path(job, "/events"), EventParser(last_event_id)
        retries = Retries(self._policy)
        while True:
            response = self._send("GET", path, NO_EVENTS, stream=True, headers=parser.headers())
            with closing(response):
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
                    for chunk in response.iter_bytes():
                        for event in self._read_events(parser, chunk, job):
                            retries.reset()
                            yield event
                            if event.name == "end":
                                return
                            job = event.job
                except httpx.TransportError as error:
                    failure = self._failure(error)
            sleep(max(retries.pause_after(failure), parser.retry_s))
        polling = Polling(self.get(job), self._policy)
        for _ in self._changes(polling):
            yield polling.event()

    def download(self, job: Job | str, path: Path | str) -> Job:
        """Writes the result of a job that has succeeded to a file.

        The file is written aside and renamed when it is complete and its sha256 is right; a cut
        download resumes where it was cut.

        Raises:
            JobFailed: the job has no result.
            DownloadFailed: other bytes arrive than the job announced, twice.
            OSError: the file cannot be written.
        """
        job = self.get(job) if isinstance(job, str) or job.result is None else job
        if job.result is None:
            raise JobFailed(job)
        result, retries = self._path(job, "/result"), Retries(self._policy)
        with PartialDownload(Path(path), job.result) as part:
            while not part.is_complete():
                try:
                    response = self._send("GET", result, {416}, stream=True, headers=part.headers())
                    with closing(response):
                        part.begin(response)
                        for chunk in response.iter_bytes():
                            if part.write(chunk):
                                retries.reset()
                        part.end()
                except httpx.TransportError as error:
                    sleep(retries.pause_after(self._failure(error)))
            part.rename()
        return job

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
        if parameters.get("output_format") is None:
            parameters["output_format"] = format_of(Path(target))
        job = self.submit(image, **parameters)
        try:
            job = self.wait(job, on_progress, timeout)
        except (JobFailed, Unreachable):
            raise
        except BaseException:  # an interruption too: the result will not be fetched
            with suppress(httpx.TransportError):
                self._http.delete(self._path(job), timeout=CANCEL_S)
            raise
        return self.download(job, target)

    def _changes(self, polling: Polling) -> Iterator[Job]:
        """The job as it is, and as it is after each change until its end; it is polled."""
        yield polling.job
        while not polling.job.ended:
            sleep(polling.limit(polling.pause_s))
            response = self._send(
                "GET", self._path(polling.job), {304}, polling=polling, headers=polling.headers
            )
            if self._read_poll(response, polling):
                yield polling.job

    def _send(
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
            try:
                request = self._request(method, path, polling, content)
                response = self._http.send(request, stream=stream)
                if not response.is_success:
                    response.read()
                self._check(response, accept)
                return response
            except (httpx.TransportError, Refused) as error:
                sleep(retries.pause_after(self._failure(error)))
