"""A running `stablesr up`, of this build or another, and a client that uses it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import torch

from benchmarks.checkouts import environment_of
from benchmarks.machine import resident_peak
from models.checkpoints.folder import random_networks, save_folder
from models.config import ModelConfig
from stablesr_client import Client, Job

STOP_S = 120.0
POLL_S = 0.05

NO_LIMITS: Mapping[str, str] = {
    "STABLESR_UPLOADS_PER_MINUTE": "0",
    # Of which one client has a tenth, and a fortieth.
    "STABLESR_MAX_QUEUED": "10000",
    "STABLESR_MAX_CONNECTIONS": "20000",
    # Nothing here hangs, and full-size networks take hours on a CPU.
    "STABLESR_JOB_TIMEOUT_S": "864000",
}
"""A benchmark asks more often than a client may."""


class Stack:
    """Redis, service and worker; `with` starts them, waits until they are ready, and ends them.

    Args:
        data: their folder.
        settings: environment variables beside those of this process.
        checkout: of another build.
    """

    def __init__(
        self, data: Path, settings: Mapping[str, str], checkout: Path | None = None
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = data / "up.log"
        self._command = [sys.executable, "-m", "cli", "up", "--port", str(port)]
        self._command += ["--data", str(data)]
        self._checkout = checkout
        environment = environment_of(checkout) if checkout else os.environ
        self._environment = {**environment, **NO_LIMITS, **settings}
        self._process: subprocess.Popen[bytes]
        self._resources = ExitStack()
        self.client: Client
        self.ready_s = 0.0
        """From the start of the command to the first 200 of /readyz"""

    def __enter__(self) -> Self:
        start = time.perf_counter()
        with ExitStack() as resources:
            log = resources.enter_context(self._log.open("wb"))
            self._process = subprocess.Popen(
                self._command, cwd=self._checkout, env=self._environment, stdout=log, stderr=log
            )
            resources.callback(self._stop)
            self._http = resources.enter_context(httpx.Client(base_url=self.url, trust_env=False))
            while not self._is_ready():
                time.sleep(POLL_S)
            self.ready_s = time.perf_counter() - start
            self.client = resources.enter_context(Client(self.url))
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.close()

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise SystemExit(f"stablesr up ended:\n{self._log.read_text()[-2000:]}")
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def result(self, job: Job) -> bytes:
        """The result's file."""
        response = self._http.get(f"/jobs/{job.id}/result", timeout=60)
        return response.raise_for_status().content

    def process(self, part: str) -> int:
        """The id of the `serve` or the `worker` process."""
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if part.encode() in words:
                    return int(child)
        raise LookupError(f"stablesr up runs no process {part!r}.")

    def peak_memory(self, part: str) -> int:
        """Bytes that the process had resident at most."""
        return resident_peak(str(self.process(part)))

    def redis_url(self) -> str:
        """Of its Redis."""
        environment = Path(f"/proc/{self.process('serve')}/environ").read_text().split("\0")
        (url,) = (
            v for n, _, v in (e.partition("=") for e in environment) if n == "STABLESR_REDIS_URL"
        )
        return url


def last_state(client: Client, jobs: Iterable[Job]) -> list[Job]:
    """The jobs as they ended, as soon as all of them have; listened for, not asked for.

    Raises:
        SystemExit: one of them did not succeed; says why.
    """
    last = []
    for job in jobs:
        for event in client.events(job):
            job = event.job
        if not job.succeeded:
            raise SystemExit(f"The job {job.id} is {job.state}: {job.error}")
        last.append(job)
    return last


def write_random_weights(root: Path, preset: str) -> None:
    """Full-size networks of random numbers, in half precision, where STABLESR_WEIGHTS=root has
    the preset's."""
    networks = random_networks(ModelConfig(), torch.device("cpu"), torch.float16)
    save_folder(networks, root / preset, torch.float16)
