"""`Client`: the service for ordinary, blocking code."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
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

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """A client of one server; safe to share between threads, closed by its `with` block.

    Args:
        server: its address, such as "http://127.0.0.1:8000".
        api_key: sent as `Authorization: Bearer`.
        patience: how long it tries again when the server is away or full.
        transport: in place of the network; so are `sleep`, `now` and `chance`, for tests.

    Raises:
        ValueError: the address is none.
    """

    def __init__(
        self,
        server: str,
        *,
        api_key: str | None = None,
        patience: Patience | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        name, given = settings(server, api_key)
        self._http = httpx.Client(transport=transport, **given)
        self._do = Operations(name, patience or Patience(), Clock(now, chance))
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
            Refused, Unreachable: there is no job.
            OSError: the file cannot be read.
        """
        return self._run(self._do.submit(image, parameters, filename=filename, key=idempotency_key))

    def get(self, job: Job | str) -> Job:
        """A job, given by itself or its id, as it is now.

        Raises:
            NotFound: the server does not know it.
            Refused, Unreachable: as every call.
        """
        return self._run(self._do.get(job))

    def wait(
        self,
        job: Job | str,
        on_progress: Callable[[Job], Any] | None = None,
        timeout: float | None = None,
    ) -> Job:
        """Asks until a job has ended, as often as the server suggests; outlives short outages.

        Args:
            on_progress: called with the job as it is at first and after every change.
            timeout: seconds after which to give up waiting; the job goes on.

        Returns:
            The job, succeeded.

        Raises:
            JobFailed: it ended in any other way.
            TimedOut: the timeout is over.
            Refused, Unreachable: for longer than the patience.
        """
        return self._run(self._do.wait(job, on_progress, timeout))

    def events(self, job: Job | str, last_event_id: str | None = None) -> Iterator[Event]:
        """What happens to a job, as it happens, until its end; a cut stream is taken up again.

        With a server that has no events the job is asked for again and again instead.

        Args:
            last_event_id: of the last event that is known already.

        Raises:
            Refused, Unreachable: for longer than the patience.
        """
        return self._drive(Run(self._do.events(job, last_event_id)))

    def download(self, job: Job | str, path: Path | str) -> Job:
        """Writes the result of a job that has succeeded to a file.

        The file is written aside and renamed when it is whole and its sha256 is right; a cut
        download goes on where it was cut.

        Raises:
            JobFailed: the job has no result.
            NotFound: the result has expired.
            DownloadFailed: other bytes arrive than the job announced, twice.
            Refused, Unreachable: for longer than the patience.
            OSError: the file cannot be written.
        """
        return self._run(self._do.download(job, Path(path)))

    def cancel(self, job: Job | str) -> Job:
        """Cancels a job; one that runs stops at its next step, one that has ended stays as it is.

        Raises:
            NotFound: the server does not know it.
            Refused, Unreachable: as every call.
        """
        return self._run(self._do.cancel(job))

    def jobs(self, state: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """The jobs of this key, newest first, asked for page by page while they are read.

        Args:
            state: only those in it.
            limit: at most so many.

        Raises:
            Refused, Unreachable: as every call.
        """
        return self._drive(Run(self._do.jobs(state, limit)))

    def models(self) -> Models:
        """The presets, their defaults, limits and licences, and which are served now.

        Raises:
            Refused, Unreachable: as every call.
        """
        return self._run(self._do.models())

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
        return self._run(self._do.upscale(image, Path(target), parameters, on_progress, timeout))

    def _run(self, operation: Operation[T]) -> T:
        run = Run(operation)
        for _ in self._drive(run):
            raise AssertionError("only calls that are iterated emit")
        return run.value

    def _drive(self, run: Run[Any]) -> Iterator[Any]:
        body = _Body()
        try:
            effect = run.next()
            while effect is not None:
                try:
                    outcome: Any = None
                    if isinstance(effect, Emit):
                        yield effect.item
                    else:
                        outcome = self._perform(effect, body)
                # The operation decides about all of them, and may still have to clean up.
                except BaseException as error:
                    effect = run.next(error=error)
                else:
                    effect = run.next(outcome)
        finally:
            body.close()

    def _perform(self, effect: Effect, body: _Body) -> Any:
        match effect:
            case Send():
                body.close()
                request = request_of(self._http, effect)
                response = self._http.send(request, stream=effect.stream)
                if effect.stream:
                    body.take(response)
                return response
            case Chunk():
                return next(body.chunks, None)
            case Sleep():
                self._sleep(effect.seconds)
            case Call():
                effect.function(effect.argument)
        return None


class _Body:
    """The response whose body is being read, if any."""

    def __init__(self) -> None:
        self._response: httpx.Response | None = None
        self.chunks: Iterator[bytes]

    def take(self, response: httpx.Response) -> None:
        """Reads an error's body at once, and a success's as it is asked for."""
        self._response = response
        self.chunks = response.iter_bytes()
        if not response.is_success:
            response.read()

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
