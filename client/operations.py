"""What a client does, written once for sync and async: each call as a generator of effects.

Nothing here does input or output over the network, sleeps or asks for the time itself;
`client.sync` and `client.aio` do it for these generators (see `client.effects`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from client.asking import Asking
from client.effects import Call, Chunk, Effect, Emit, Operation, Send, Sleep
from client.errors import ClientError, DownloadFailed, JobFailed, TimedOut, Unreachable
from client.events import EventParser
from client.image import Image, format_of, opened
from client.part import Part
from client.retry import OutOfTime, Tries, retry_after_s
from client.schema import Event, Job, Models, Page, Parameters, Progress

__all__ = ["Operations"]

JOB = TypeAdapter(Job)
PAGES = TypeAdapter(Page)
MODELS = TypeAdapter(Models)
PROGRESS = TypeAdapter(Progress)

# While a job is waited for, an answer 500 to one look is no reason to give the job up.
PATIENT = frozenset({408, 429, 500, 502, 503, 504})
# With Retry-After, 409 to a submission means that the first one under its key is being worked on.
SUBMITTING = frozenset({408, 409, 429, 502, 503, 504})
# How a server without events answers, or one with too many streams open. 404 may also mean that
# it does not know the job: asking for that tells.
NO_EVENTS = frozenset({404, 405, 406, 429, 501})
PAGE = 100
"""Jobs of a list that are asked for at once."""
NOW_S = 5.0
"""How long a job may take to be canceled for a caller who is being interrupted."""


class Operations(Asking):
    """The calls of a client of one server."""

    def submit(
        self, image: Image, parameters: Parameters, *, filename: str | None, key: str | None
    ) -> Operation[Job]:
        """See `Client.submit`."""
        fields = {name: str(value) for name, value in parameters.items() if value is not None}
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        with opened(image, filename) as (name, file):
            request = Send(
                "POST", "/upscale", headers=headers, fields=fields, files={"image": (name, file)}
            )
            response = yield from self._ask(request, again=SUBMITTING)
        return self._read(JOB, response)

    def get(self, job: Job | str) -> Operation[Job]:
        """See `Client.get`."""
        response = yield from self._ask(Send("GET", _path(job)))
        return self._read(JOB, response)

    def cancel(self, job: Job | str, *, again: bool = True) -> Operation[Job]:
        """See `Client.cancel`; not tried `again` for one who is being interrupted."""
        request = Send("DELETE", _path(job), timeout_s=None if again else NOW_S)
        if again:
            response = yield from self._ask(request, accept=frozenset({409}))
        else:
            response = yield request
        if response.status_code == httpx.codes.CONFLICT:
            return (yield from self.get(job))
        return self._read(JOB, response)

    def models(self) -> Operation[Models]:
        """See `Client.models`."""
        response = yield from self._ask(Send("GET", "/models"))
        return self._read(MODELS, response)

    def wait(
        self, job: Job | str, on_progress: Callable[[Job], Any] | None, timeout: float | None
    ) -> Operation[Job]:
        """See `Client.wait`."""
        if isinstance(job, str):
            job = yield from self.get(job)
        if on_progress is not None:
            yield Call(on_progress, job)
        job = yield from self._poll(
            job, lambda now: Call(on_progress, now) if on_progress else None, timeout
        )
        if not job.succeeded:
            raise JobFailed(job)
        return job

    def events(self, job: Job | str, last_event_id: str | None) -> Operation[None]:
        """See `Client.events`: emits an `Event` each."""
        if isinstance(job, str):
            job = yield from self.get(job)
        path = f"{_path(job)}/events"
        parser = EventParser(last_event_id)
        tries = Tries(self._patience, self._clock)
        while True:
            headers = {"Accept": "text/event-stream"}
            if parser.last_id is not None:
                headers["Last-Event-ID"] = parser.last_id
            response = yield from self._ask(
                Send("GET", path, headers=headers, stream=True), accept=NO_EVENTS, again=PATIENT
            )
            if response.status_code in NO_EVENTS:
                yield from self._poll_events(job)
                return
            if response.status_code == httpx.codes.NO_CONTENT:
                # The caller's last event was the end.
                return
            opened = self._clock.now()
            parser.reconnected()
            broken = Unreachable(f"{self.server} ended the events of {path} before the job's end.")
            try:
                while (chunk := (yield Chunk())) is not None:
                    for told in parser.feed(chunk):
                        if told.name == "progress":
                            job = replace(job, progress=self._read(PROGRESS, told.data))
                        elif told.name in ("state", "end"):
                            job = self._read(JOB, told.data)
                        else:
                            continue
                        tries.reset()
                        yield Emit(Event(told.name, job, told.id))
                        if told.name == "end":
                            return
            except httpx.ReadTimeout:
                # Nothing happened for long; a new connection tells whether the server is there.
                continue
            except httpx.TransportError as error:
                broken = self._unreachable(error)
            if self._clock.now() - opened > self._patience.longest_pause_s:
                tries.reset()
            pause = tries.pause_after(broken)
            yield Sleep(pause if parser.retry_s is None else max(pause, parser.retry_s))

    def _poll_events(self, job: Job) -> Operation[None]:
        """The events of a server that has none, as they show when it is asked again and again."""
        job = yield from self.get(job)
        state = job.state

        def event(now: Job) -> Emit:
            nonlocal state
            name = "end" if now.ended else "progress" if now.state == state else "state"
            state = now.state
            return Emit(Event(name, now))

        yield Emit(Event("end" if job.ended else "state", job))
        yield from self._poll(job, event, None)

    def _poll(
        self, job: Job, tell: Callable[[Job], Effect | None], timeout: float | None
    ) -> Operation[Job]:
        """Asks until the job has ended; `tell` makes an effect of each change."""
        deadline = None if timeout is None else self._clock.now() + timeout
        etag: str | None = None
        grown = self._patience.shortest_pause_s
        pause = grown
        try:
            while not job.ended:
                if deadline is not None:
                    # The last look is at the deadline, however late the server would like it.
                    if (left := deadline - self._clock.now()) <= 0:
                        raise OutOfTime
                    pause = min(pause, left)
                yield Sleep(pause)
                headers = {} if etag is None else {"If-None-Match": etag}
                response = yield from self._ask(
                    Send("GET", _path(job), headers=headers),
                    accept=frozenset({304}),
                    again=PATIENT,
                    deadline=deadline,
                )
                if response.status_code == httpx.codes.NOT_MODIFIED:
                    grown = min(1.5 * grown, self._patience.longest_pause_s)
                else:
                    grown = self._patience.shortest_pause_s
                    etag = response.headers.get("ETag")
                    job = self._read(JOB, response)
                    if effect := tell(job):
                        yield effect
                asked = retry_after_s(response.headers.get("Retry-After"))
                pause = grown if asked is None else max(asked, self._patience.shortest_pause_s)
                pause *= 1 + self._clock.chance() / 10
        except OutOfTime:
            assert timeout is not None
            raise TimedOut(job, timeout) from None
        return job

    def download(self, job: Job | str, target: Path) -> Operation[Job]:
        """See `Client.download`."""
        if isinstance(job, str) or job.result is None:
            job = yield from self.get(job)
        if job.result is None:
            raise JobFailed(job)
        request = f"{_path(job)}/result"
        tries = Tries(self._patience, self._clock)
        furthest, anew = 0, False
        with Part(target, job.result) as part:
            while True:
                if not part.whole:
                    response = yield from self._ask(
                        Send("GET", request, headers=part.headers(), stream=True),
                        accept=frozenset({416}),
                    )
                    part.begin(response)
                    try:
                        while (chunk := (yield Chunk())) is not None:
                            part.write(chunk)
                            if part.size > furthest:
                                furthest = part.size
                                tries.reset()
                    except httpx.TransportError as error:
                        yield Sleep(tries.pause_after(self._unreachable(error)))
                        continue
                try:
                    part.check()
                except DownloadFailed:
                    # Once more from the start: the pieces may have been of two files.
                    if anew:
                        raise
                    anew = True
                    part.restart()
                else:
                    part.keep()
                    return job

    def upscale(
        self,
        image: Image,
        target: Path,
        parameters: Parameters,
        on_progress: Callable[[Job], Any] | None,
        timeout: float | None,
    ) -> Operation[Job]:
        """See `Client.upscale`."""
        if parameters.get("output_format") is None:
            parameters = {**parameters, "output_format": format_of(target)}
        job = yield from self.submit(image, parameters, filename=None, key=None)
        try:
            job = yield from self.wait(job, on_progress, timeout)
        # Whatever it is, an interruption too: nobody will fetch this job's result.
        except BaseException as error:
            if not isinstance(error, JobFailed | Unreachable | GeneratorExit):
                with suppress(ClientError, httpx.TransportError):
                    yield from self.cancel(job, again=False)
            raise
        return (yield from self.download(job, target))

    def jobs(self, state: str | None, limit: int | None) -> Operation[None]:
        """See `Client.jobs`: emits a `Job` each."""
        params = {} if state is None else {"state": state}
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(left, PAGE)
            request = Send("GET", "/jobs", params={**params, "limit": str(size)})
            page = self._read(PAGES, (yield from self._ask(request)))
            for job in page.jobs[:left]:
                yield Emit(job)
            if page.next is None:
                return
            params["cursor"] = page.next
            left = None if left is None else left - len(page.jobs)


def _path(job: Job | str) -> str:
    job_id = job if isinstance(job, str) else job.id
    return f"/jobs/{quote(job_id, safe='')}"
