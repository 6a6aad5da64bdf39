"""Jobs of one size, and what is to upscale them: the real queue, or the engine alone."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.model import load
from benchmarks.pictures import Pixels, decoded, picture
from benchmarks.rounds import Done, Round
from benchmarks.service import (
    Figures,
    House,
    done_of,
    ended,
    environment,
    write_random_weights,
)
from jobs.schema import Parameters
from jobs.settings import Settings
from models.checkpoints.description import describe
from models.checkpoints.folder import preset_folder
from models.config import ModelConfig
from models.estimate import Layout
from models.finishing import joined
from models.pipeline import StableSR
from models.presets import get_preset
from worker.device import choose_device, choose_dtype, compile_options_of, resources_of
from worker.engine import Engine
from worker.images import decode
from worker.options import options_of

__all__ = [
    "Asked",
    "InEngine",
    "InService",
    "Runner",
    "Workload",
    "in_engine",
    "in_service",
]

SCALE = 4
JOB_TIMEOUT_S = 24 * 3600


@dataclass(frozen=True)
class Asked:
    """One job: a picture and a seed, both of this number."""

    number: int
    side: int
    """Of the result, px"""
    steps: int

    @property
    def file(self) -> bytes:
        return picture(self.side // SCALE, self.number)

    def parameters(self, preset: str) -> Parameters:
        return Parameters(preset=preset, scale=SCALE, steps=self.steps, seed=self.number)


@dataclass(frozen=True)
class Workload:
    """What the worker is told, None being the default of its settings."""

    preset: str
    weights: str
    """preset or random"""
    device: str
    dtype: str
    compile: str
    slots: int
    """Jobs that run together"""
    max_tiles: int | None
    """Tiles in one network call"""
    fixed_batch: int | None

    def settings(self) -> dict[str, object]:
        """By the names of `jobs.settings`."""
        return {
            "preset": self.preset,
            "device": self.device,
            "dtype": self.dtype,
            "compile": self.compile,
            "slots": self.slots,
            "tile_batch": self.max_tiles,
            "fixed_batch": self.fixed_batch,
            # Nothing here hangs, and one at a time on a CPU the full-size networks take hours.
            "job_timeout_s": JOB_TIMEOUT_S,
            "step_timeout_s": JOB_TIMEOUT_S,
        }


class Runner(Protocol):
    """Runs jobs, all at once or one after the other."""

    def run(self, jobs: Sequence[Asked], *, together: bool) -> tuple[Round, list[Pixels]]:
        """What they took, and the results in the order of the jobs."""


class InService:
    """Through HTTP, the queue and a worker, each a process of its own."""

    def __init__(self, house: House, preset: str, config: ModelConfig) -> None:
        self._house, self._preset, self._config = house, preset, config
        self._before = Figures(0, 0, 0.0)

    def run(self, jobs: Sequence[Asked], *, together: bool) -> tuple[Round, list[Pixels]]:
        client = self._house.client
        files = [job.file for job in jobs]
        rounds = [range(len(jobs))] if together else [[number] for number in range(len(jobs))]
        last = []
        began = time.perf_counter()
        for numbers in rounds:
            submitted = [
                client.submit(
                    files[number],
                    scale=SCALE,
                    steps=jobs[number].steps,
                    seed=jobs[number].number,
                    preset=self._preset,
                    output_format="png",
                )
                for number in numbers
            ]
            last += ended(client, submitted)
        seconds = time.perf_counter() - began
        before, tiles = self._before, sum(map(self._tiles, jobs))
        after = self._before = self._house.figures_at(before.tiles + tiles)
        calls = after.calls - before.calls
        done = Round(
            seconds,
            tuple(map(done_of, last)),
            calls,
            after.tiles - before.tiles,
            (after.fills - before.fills) / calls,
        )
        return done, [decoded(self._house.result(job)) for job in last]

    def _tiles(self, job: Asked) -> int:
        """Predictions that the job takes, all its steps together."""
        side = job.side // SCALE
        options = options_of(job.parameters(self._preset))
        layout = Layout.of(self._config, get_preset(self._preset), side, side, options)
        return job.steps * len(layout.grid)


class InEngine:
    """On threads of this process, as a worker's slots do it, without queue and image files."""

    def __init__(self, sr: StableSR, engine: Engine, slots: int) -> None:
        self._sr, self._engine, self._slots = sr, engine, slots
        self._device_lock = threading.Lock()

    def run(self, jobs: Sequence[Asked], *, together: bool) -> tuple[Round, list[Pixels]]:
        images = [decode(job.file, job.side**2).rgb for job in jobs]
        engine = self._engine
        calls, tiles = engine.calls, engine.tiles
        began = time.perf_counter()

        def one(job: Asked, image: torch.Tensor) -> tuple[Done, Pixels]:
            submitted = began if together else time.perf_counter()
            return self._one(job, image, submitted)

        with ThreadPoolExecutor(self._slots if together else 1) as pool:
            if together:
                made = list(pool.map(one, jobs, images))
            else:
                # Each is submitted when the one before has ended.
                made = [
                    pool.submit(one, job, image).result()
                    for job, image in zip(jobs, images, strict=True)
                ]
        seconds = time.perf_counter() - began
        calls, tiles = engine.calls - calls, engine.tiles - tiles
        fill = tiles / calls / engine.max_tiles
        return Round(seconds, tuple(d for d, _ in made), calls, tiles, fill), [p for _, p in made]

    def _one(self, job: Asked, image: torch.Tensor, submitted: float) -> tuple[Done, Pixels]:
        sr, options = self._sr, options_of(job.parameters(self._sr.preset.name))
        stages: dict[str, float] = {}
        last = submitted

        def passed(stage: str) -> None:
            nonlocal last
            last, before = time.perf_counter(), last
            stages[stage] = last - before

        passed("queue")
        with torch.inference_mode():
            with self._device_lock:
                prepared = sr.prepare(image, options)
            passed("encode")
            with prepared:
                latent = self._engine.run(sr.sample(prepared, options))
                passed("denoise")
                with self._device_lock:
                    rows = sr.rows(prepared, latent, options)
                passed("decode")
            result = joined(rows, prepared.plan.layout.size)
            pixels = (result[0].permute(1, 2, 0) * 255).round().byte().numpy()
            passed("save")
        return Done(last - submitted, stages), pixels


@contextmanager
def in_service(workload: Workload) -> Iterator[InService]:
    """The processes, the model loaded; random weights lie in a folder as long as they run."""
    with ExitStack() as held:
        told = workload.settings()
        folder = preset_folder(get_preset(workload.preset))
        if workload.weights == "random":
            root = held.enter_context(tempfile.TemporaryDirectory(prefix="stablesr-weights-"))
            write_random_weights(Path(root), workload.preset)
            folder = Path(root, workload.preset)
            held.enter_context(environment({"STABLESR_WEIGHTS": root}))
        house = held.enter_context(House(**told))
        yield InService(house, workload.preset, describe(folder).config)


@contextmanager
def in_engine(workload: Workload) -> Iterator[InEngine]:
    """The model in this process, and an engine of a worker's making."""
    settings = Settings(**workload.settings())
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    resources = resources_of(settings, jobs=settings.slots)
    compiling = compile_options_of(settings)
    sr = load(workload.preset, workload.weights, device, dtype, resources, compiling=compiling)
    sr.compile()
    engine = Engine(sr, max_tiles=sr.tile_batch)
    engine.start()
    try:
        yield InEngine(sr, engine, workload.slots)
    finally:
        engine.stop()
