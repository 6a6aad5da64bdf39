"""What one GPU does, in a few minutes, from random weights of full size: `make gpu-report`.

    python -m benchmarks --gpu --out FOLDER

    step       one network call, eager and compiled, of 1, 4 and 8 tiles
    image      one image of 200 steps, and of 4
    together   16 jobs one by one, and in shared network calls
    memory     peak memory of whole images of 1024 and 2048 px
    tests      tests/gpu

Each part runs in a process of its own that is killed at its time limit; the time that a part leaves
is for the last one, which compiles. What a part measured before it failed stays, and the table
names the reason. Needs torch and what `models` imports: no network, no Redis, no weights.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.machine import peak_memory, reset_peak_memory
from benchmarks.model import Model, Variant, load
from benchmarks.processes import run_part
from benchmarks.report import tables
from benchmarks.results import Measurement, Result
from benchmarks.step import figures, time_calls
from models.parameters import preset_parameters
from models.pipeline import StableSR
from models.sampling import drive_all

LIMIT_S = 480.0
SCALE = 4
SEED = 0


@dataclass(frozen=True)
class Sizes:
    """How much is measured; sides are of results, px."""

    model: Model
    dtype: str = "bf16"
    batches: tuple[int, ...] = (1, 4, 8)
    side: int = 512
    steps: tuple[int, ...] = (200, 4)
    jobs: int = 16
    job_steps: int = 20
    memory_sides: tuple[int, ...] = (1024, 2048)
    repeats: int = 5
    tests: str = "tests/gpu"


def small_sizes(model: Model) -> Sizes:
    """For a rehearsal on a processor."""
    return Sizes(
        model,
        dtype="fp32",
        batches=(1, 2),
        side=64,
        steps=(2, 1),
        jobs=2,
        job_steps=1,
        memory_sides=(64,),
        repeats=1,
    )


Part = Callable[[Sizes], Iterator[Measurement]]


def step(sizes: Sizes, compiles: bool) -> Iterator[Measurement]:
    """Seconds a tile and step."""
    mode = "compiled" if compiles else "eager"
    variant = Variant(f"{mode} {sizes.dtype}", sizes.dtype, compile="on" if compiles else "off")
    sr = load(sizes.model, variant)
    for batch in sizes.batches:
        reset_peak_memory(sr.device)
        wall, _ = time_calls(sr, batch, sizes.repeats)
        seconds = statistics.median(wall[1:]) / batch
        case = f"batch {batch}"
        yield from figures(variant.name, case, seconds, wall[0], peak_memory(sr.device), None)
        if eager := sr.fallbacks["eager_failure"] if compiles else 0:
            yield Measurement(variant.name, case, "calls not compiled", eager, "count")


def step_eager(sizes: Sizes) -> Iterator[Measurement]:
    return step(sizes, compiles=False)


def step_compiled(sizes: Sizes) -> Iterator[Measurement]:
    return step(sizes, compiles=True)


def image(sizes: Sizes) -> Iterator[Measurement]:
    """Seconds of one image, eager; one before it is not counted."""
    name = f"eager {sizes.dtype}"
    sr = load(sizes.model, Variant(name, sizes.dtype))
    source = image_of(sizes.side)
    sr.upscale(source, preset_parameters(sr.preset, scale=SCALE, steps=1))
    for steps in sizes.steps:
        reset_peak_memory(sr.device)
        start = time.perf_counter()
        sr.upscale(source, preset_parameters(sr.preset, scale=SCALE, steps=steps))
        seconds = time.perf_counter() - start
        case = f"{sizes.side} px, {steps} steps"
        yield Measurement(name, case, "all", seconds, "s")
        yield Measurement(name, case, "peak memory", peak_memory(sr.device), "bytes")


def together(sizes: Sizes) -> Iterator[Measurement]:
    """Images a second, by the size of the network calls that all jobs share."""
    sr = load(sizes.model, Variant("", sizes.dtype))
    sr.upscale(image_of(sizes.side), preset_parameters(sr.preset, scale=SCALE, steps=1))
    case = f"{sizes.jobs} jobs of {sizes.job_steps} steps, {sizes.side} px"
    for name, count in (("one by one", 1), ("together", sizes.jobs)):
        start = time.perf_counter()
        for first in range(0, sizes.jobs, count):
            upscale_jobs(sr, sizes, range(first, first + count))
        speed = sizes.jobs / (time.perf_counter() - start)
        yield Measurement(name, case, "speed", speed, "images/s")


def upscale_jobs(sr: StableSR, sizes: Sizes, numbers: Sequence[int]) -> None:
    """Jobs whose tiles share network calls; each is encoded and decoded alone."""
    options = preset_parameters(sr.preset, scale=SCALE, steps=sizes.job_steps)
    images = [sr.prepare(image_of(sizes.side, number), options) for number in numbers]
    samplers = [
        sr.sample(image, options.model_copy(update={"seed": number}))
        for image, number in zip(images, numbers, strict=True)
    ]
    for image, latent in zip(images, drive_all(samplers, sr.predict, len(numbers)), strict=True):
        sr.decode(image, latent, options)
        image.close()


def memory(sizes: Sizes) -> Iterator[Measurement]:
    """Peak memory of whole images, the weights in it."""
    sr = load(sizes.model, Variant("", sizes.dtype))
    for side in sizes.memory_sides:
        reset_peak_memory(sr.device)
        start = time.perf_counter()
        sr.upscale(
            image_of(side), preset_parameters(sr.preset, scale=SCALE, steps=1, fidelity_weight=0.5)
        )
        seconds = time.perf_counter() - start
        yield Measurement("", f"{side} px", "peak memory", peak_memory(sr.device), "bytes")
        yield Measurement("", f"{side} px", "one step", seconds, "s")


def tests(sizes: Sizes) -> Iterator[Measurement]:
    """How many tests passed; each that did not is named in the log.

    Raises:
        RuntimeError: a test failed.
    """
    import pytest  # here, as the other parts need none

    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    names: list[str] = []

    class Counter:
        """A plugin of pytest."""

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] += 1
            if report.outcome == "failed":
                names.append(report.nodeid.rpartition("::")[2])

    # Without the project's settings, which name plugins that such a machine may lack.
    options = ["-c", os.devnull, "--rootdir", ".", "--noconftest", "--import-mode=importlib"]
    code = pytest.main([*options, "-q", "-p", "no:cacheprovider", sizes.tests], [Counter()])
    for outcome, count in counts.items():
        yield Measurement("", sizes.tests, outcome, count, "count")
    if names or code not in (0, 5):
        raise RuntimeError(f"pytest ended with {int(code)}: {', '.join(names) or 'see its log'}")


def image_of(side: int, seed: int = SEED) -> torch.Tensor:
    """An input whose result has that side."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, side // SCALE, side // SCALE, generator=generator)


# Those that are short first, and last the one that takes what time there is.
PARTS: dict[str, tuple[Part, float]] = {
    "step, eager": (step_eager, 70),
    "image": (image, 70),
    "together": (together, 80),
    "memory": (memory, 60),
    "tests": (tests, 110),
    "step, compiled": (step_compiled, LIMIT_S),
}


def report(sizes: Sizes, folder: Path, limit_s: float = LIMIT_S) -> Result:
    """Run all parts, in at most `limit_s` in total, of which each has its share; write
    `gpu-report.json` and `gpu-report.md`, anew after each part."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + limit_s
    subject = f"{sizes.model.preset}, {sizes.model.weights} weights, {sizes.dtype}"
    result = Result.of("benchmarks", subject, sizes.model.device, [])
    for name, (part, limit) in PARTS.items():
        print(name, flush=True)
        seconds = min(limit * limit_s / LIMIT_S, end - time.monotonic())
        measurements, reason = run_part(part, sizes, seconds) if seconds > 0 else ([], "no time")
        result.measurements += [
            replace(m, case=", ".join(filter(None, (name.partition(",")[0], m.case))))
            for m in measurements
        ]
        if reason:
            result.failures[name] = reason
        (folder / "gpu-report.json").write_text(result.model_dump_json(indent=2) + "\n")
        (folder / "gpu-report.md").write_text(tables([result]) + "\n")
    return result
