"""A client of the HTTP interface: submit a picture, wait for it, fetch the result.

    with Client("http://127.0.0.1:8000") as client:
        job = client.submit(Path("in.png"), {"scale": "2"})
        job = client.wait(job, on_change=print)
        client.download(job, Path("out.png"))

It waits as the server asks (`Retry-After`), asks for a job's state with its ETag so that an
unchanged one costs no body, and lives through a short outage while it waits.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel, ConfigDict

from cli.errors import InputError, JobFailed, Refused, Unreachable
from cli.files import write_aside

__all__ = ["Client", "RemoteJob", "RemoteProgress", "RemoteResult", "retry_after_s"]

FASTEST_POLL_S = 0.25
SLOWEST_POLL_S = 5.0
OUTAGE_S = 60.0
"""How long a waiting client tries again when the server stops answering."""
QUEUE_FULL_S = 120.0
"""How long a submission that is told to come later does so."""


class _Lenient(BaseModel):
    # A newer server may say more than this client knows.
    model_config = ConfigDict(extra="ignore", frozen=True)


class RemoteProgress(_Lenient):
    """How far a job is; `fraction` is 0 to 1, `eta_seconds` None while it is unknown."""

    stage: str
    step: int | None = None
    steps: int | None = None
    fraction: float = 0.0
    eta_seconds: float | None = None


class RemoteResult(_Lenient):
    """The result of a job; sizes in pixels, `url` relative to the server."""

    url: str | None = None
    width: int
    height: int
    bytes: int


class RemoteJob(_Lenient):
    """A job as the server tells it."""

    id: str
    state: str
    preset: str
    seed: int | None = None
    queue_position: int | None = None
    progress: RemoteProgress | None = None
    result: RemoteResult | None = None
    timings: dict[str, float | None] | None = None
    error: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether the state can change no more."""
        return self.state in {"succeeded", "failed", "canceled", "expired"}


class Client:
    """Talks to one server.

    Args:
        server: its address, such as "http://127.0.0.1:8000".
        transport: in place of the network, for tests.
    """

    def __init__(self, server: str, *, transport: httpx.BaseTransport | None = None) -> None:
        if not server.startswith(("http://", "https://")):
            raise InputError(f"--server {server}: an address begins with http:// or https://.")
        self._server = server.rstrip("/")
        self._http = httpx.Client(
            base_url=self._server,
            transport=transport,
            # An upload of many megabytes may take long; a server that does not even accept
            # the connection will not within ten seconds.
            timeout=httpx.Timeout(60.0, connect=10.0),
            headers={"Accept": "application/json, application/problem+json, image/*"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def submit(self, image: Path, parameters: Mapping[str, str]) -> RemoteJob:
        """Uploads a picture as a new job.

        A server that is full is asked again when it said so, for two minutes. Nothing else is
        sent twice: a lost answer could mean a second job.

        Args:
            image: the file.
            parameters: form fields of `POST /upscale`; absent ones take the server's defaults.

        Raises:
            InputError: the file cannot be read.
            Refused: the server says no, or is full for longer than two minutes.
            Unreachable: no server answers.
        """
        deadline = time.monotonic() + QUEUE_FULL_S
        while True:
            try:
                with image.open("rb") as file:
                    response = self._send(
                        "POST", "/upscale", data=dict(parameters), files={"image": file}
                    )
            except OSError as error:
                raise InputError(f"{image} cannot be read: {error.strerror or error}.") from error
            try:
                return RemoteJob.model_validate_json(self._checked(response).content)
            except Refused as refusal:
                wait = refusal.retry_after
                busy = refusal.status in {429, 503} and wait is not None
                if not busy or wait is None or time.monotonic() + wait > deadline:
                    raise
                time.sleep(max(wait, FASTEST_POLL_S))

    def job(self, job_id: str) -> RemoteJob:
        """The state of a job.

        Raises:
            Refused: the server does not know it.
            Unreachable: no server answers.
        """
        response = self._checked(self._send("GET", f"/jobs/{job_id}"))
        return RemoteJob.model_validate_json(response.content)

    def wait(
        self, job: RemoteJob, on_change: Callable[[RemoteJob], None] = lambda job: None
    ) -> RemoteJob:
        """Asks until the job has ended; calls `on_change` with every new state.

        Returns:
            The job, succeeded.

        Raises:
            JobFailed: it ended in any other way.
            Refused: the server does not know it any more.
            Unreachable: the server was away for a minute.
        """
        etag: str | None = None
        pause = FASTEST_POLL_S
        lost_at: float | None = None
        on_change(job)
        while not job.ended:
            time.sleep(pause)
            headers = {} if etag is None else {"If-None-Match": etag}
            try:
                response = self._send("GET", f"/jobs/{job.id}", headers=headers)
                if response.status_code != httpx.codes.NOT_MODIFIED:
                    self._checked(response)
            except (Unreachable, Refused) as error:
                away = isinstance(error, Unreachable) or error.status in {429, 502, 503, 504}
                lost_at = lost_at or time.monotonic()
                if not away or time.monotonic() - lost_at > OUTAGE_S:
                    raise
                pause = min(2 * pause, SLOWEST_POLL_S)
                continue
            lost_at = None
            asked = retry_after_s(response.headers.get("Retry-After"))
            if response.status_code == httpx.codes.NOT_MODIFIED:
                pause = min(1.5 * pause, SLOWEST_POLL_S) if asked is None else _bounded(asked)
                continue
            etag = response.headers.get("ETag")
            job = RemoteJob.model_validate_json(response.content)
            pause = FASTEST_POLL_S if asked is None else _bounded(asked)
            on_change(job)
        if job.state != "succeeded":
            raise JobFailed(_why(job))
        return job

    def download(self, job: RemoteJob, target: Path) -> int:
        """Writes the result of a succeeded job to `target`; aside first, then renamed.

        Returns:
            The number of bytes.

        Raises:
            InputError: the file cannot be written.
            Refused: the result is gone.
            Unreachable: the server does not answer, or breaks off.
        """
        path = f"/jobs/{job.id}/result"
        with write_aside(target) as aside:
            size = 0
            try:
                with self._http.stream("GET", path) as response:
                    if response.is_error:
                        response.read()
                    self._checked(response)
                    with aside.open("wb") as file:
                        for chunk in response.iter_bytes():
                            size += file.write(chunk)
            except httpx.TransportError as error:
                raise self._unreachable(error) from error
        return size

    def cancel(self, job_id: str) -> None:
        """Cancels a job, whatever state it is in; one that has ended stays as it is.

        Raises:
            Refused: the server does not know it.
            Unreachable: no server answers.
        """
        response = self._send("DELETE", f"/jobs/{job_id}")
        if response.status_code != httpx.codes.CONFLICT:
            self._checked(response)

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        reason = str(error) or type(error).__name__
        return Unreachable(f"No server answers at {self._server} ({reason}).")

    def _checked(self, response: httpx.Response) -> httpx.Response:
        """The response when it is a success, else its problem as `Refused`."""
        if response.is_success:
            return response
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            problem = {}
        title = problem.get("title") or f"{self._server} answered {response.status_code}"
        raise Refused(
            response.status_code,
            str(title),
            _detail(problem),
            retry_after=retry_after_s(response.headers.get("Retry-After")),
        )


def retry_after_s(value: str | None) -> float | None:
    """The seconds that a `Retry-After` header asks for (a number or a date), None without one."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, at.timestamp() - time.time())


def _bounded(seconds: float) -> float:
    return min(max(seconds, FASTEST_POLL_S), SLOWEST_POLL_S)


def _detail(problem: Mapping[str, Any]) -> str:
    """A problem's detail, with the errors of its fields when it lists any."""
    detail = str(problem.get("detail") or "")
    errors = problem.get("errors")
    if not isinstance(errors, list) or (detail and len(errors) < 2):
        return detail
    lines = [
        ": ".join(str(error[key]) for key in ("field", "detail") if error.get(key))
        for error in errors
        if isinstance(error, dict)
    ]
    return "\n".join([detail, *(f"  {line}" for line in lines if line)]).strip()


def _why(job: RemoteJob) -> str:
    if job.error is None:
        return f"The job {job.id} ended as {job.state}."
    title = str(job.error.get("title") or "The job failed")
    detail = _detail(job.error)
    return f"{title}: {detail}" if detail else title
