"""Redis, the service and one worker as processes of their own, and a client that uses them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.rounds import Done
from cli.redis_server import free_port
from cli.stack import Stack
from jobs.settings import Settings
from models.checkpoints.folder import random_networks, save_folder
from models.config import ModelConfig
from stablesr_client import Client, Job

__all__ = ["Figures", "House", "done_of", "ended", "environment", "write_random_weights"]

READY_S = 3600.0
"""A worker that compiles its calls does so before it is ready."""

UNLIMITED: Mapping[str, object] = {
    "uploads_per_minute": 0,
    "reads_per_minute": 0,
    "max_queued_each": 0,
    "max_transfers_each": 100,
    "max_streams_each": 500,
}


@dataclass(frozen=True)
class Figures:
    """What the worker has counted so far."""

    calls: int
    tiles: int
    fills: float
    """Sum over all calls of (tiles in a call / tiles that fit)"""


class House:
    """One of each part with these settings; `with` starts them, waits for the model, ends them.

    Nobody is asked to slow down: whoever measures asks more often than a client may.
    """

    def __init__(self, **settings: object) -> None:
        # Judged here, with a sentence, and not by a worker's log.
        checked = Settings(**{**UNLIMITED, **settings})
        given = checked.model_dump(mode="json", exclude_unset=True)
        told = {name: given[name] for name in (*UNLIMITED, *settings) if given[name] is not None}
        self._metrics = f"http://127.0.0.1:{(port := free_port())}/metrics"
        told["metrics_port"] = port
        self._env = {f"STABLESR_{name.upper()}": str(value) for name, value in told.items()}
        self._held = ExitStack()
        self.client: Client
        self._http: httpx.Client
        self.logs: Path

    def __enter__(self) -> Self:
        with ExitStack() as held:
            data = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="stablesr-house-")))
            held.enter_context(environment(self._env))
            stack = held.enter_context(Stack(data, port=0))
            stack.start()
            stack.wait_ready(READY_S)
            self.logs = data / "logs"
            self.client = held.enter_context(Client(stack.url))
            self._http = held.enter_context(httpx.Client(base_url=stack.url, trust_env=False))
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    def figures(self) -> Figures:
        """What the worker has counted."""
        wanted = {
            "stablesr_batch_fill_count": 0.0,
            "stablesr_batch_fill_sum": 0.0,
            "stablesr_tiles_total": 0.0,
        }
        answer = self._http.get(self._metrics).raise_for_status()
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if sample.name in wanted:
                    wanted[sample.name] = sample.value
        calls, fills, tiles = wanted.values()
        return Figures(round(calls), round(tiles), fills)

    def result(self, job: Job) -> bytes:
        """The result's file."""
        return self._http.get(f"/jobs/{job.id}/result", timeout=60).raise_for_status().content


def ended(client: Client, jobs: Iterable[Job]) -> list[Job]:
    """The jobs as they ended, as soon as all of them have; listened for, not asked for.

    Raises:
        SystemExit: one of them did not succeed; says why.
    """
    last = []
    for job in jobs:
        for event in client.events(job):
            job = event.job
        if not job.succeeded:
            raise SystemExit(f"the job {job.id} is {job.state}: {job.error}")
        last.append(job)
    return last


def done_of(job: Job) -> Done:
    """What a job that succeeded took, by Redis' clock and the worker's."""
    told = {name: value or 0.0 for name, value in (job.timings or {}).items()}
    total = told.pop("total")
    # What is left is writing the file and storing it; the service does not time it.
    return Done(total, {**told, "save": total - sum(told.values())})


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Within this context the environment has these values too."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def write_random_weights(root: Path, preset: str) -> None:
    """Full-size networks of random numbers, in half precision, where STABLESR_WEIGHTS=root has
    the preset's."""
    networks = random_networks(ModelConfig(), torch.device("cpu"), torch.float16)
    save_folder(networks, root / preset, torch.float16)
