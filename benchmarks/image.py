"""Seconds of one image, stage by stage: encoding, network calls, decoding, the file.

    python -m benchmarks.image --sizes 512 1024
    python -m benchmarks.image --preset stablesr-512 --steps 4 --compare before
    python -m benchmarks.image --compare ../other-checkout --compare realesrgan-x4plus=WHEEL

An image made of the test photographs is upscaled four times to each size, alone, and written as
PNG. Stages that a worker overlaps, with each other or with other jobs', follow one another here,
each waited for. Decoding includes the colour correction. Every variant and size runs in a process
of its own, so that its peak memory is its own; there the first image, which compiles and fills
caches, is not counted.

`--compare` adds what this is compared with, before it: `before` (or `plain`), the same networks
neither fused nor compiled; another checkout of this project, whose own benchmark is run with its
own weights; a network of `evaluation.methods`, which has one stage. Ratios are to the first variant
with the same size and fidelity weight, in one invocation.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.checkouts import Row, measure_checkout
from benchmarks.images import SCALE, mosaic, result_side
from benchmarks.machine import peak_memory, synchronize
from benchmarks.model import DTYPES, Model, Variant, add_model, load, model_of
from benchmarks.processes import alone
from benchmarks.report import command_parser, publish
from benchmarks.results import Measurement, Result
from evaluation.images import tensor_of
from evaluation.methods import make_baseline
from models.parameters import UpscaleParameters, preset_parameters
from models.pipeline import Progress, StableSR
from worker.images import write

STAGES = ("encode", "denoise", "decode", "file")
BEFORE = ("before", "plain")


@dataclass(frozen=True)
class Task:
    """One variant at one size."""

    model: Model
    variant: Variant
    size: int
    """Side of the result, px"""
    fidelity_weights: tuple[float, ...]
    steps: int | None
    repeats: int
    network: str = ""
    """Of another project, in place of the variant"""


def stages_of(
    sr: StableSR, image: Tensor, options: UpscaleParameters, file: Path
) -> dict[str, float]:
    """Upscales an image into a PNG file: seconds of each stage."""
    starts: dict[str, float] = {}

    def on_progress(progress: Progress) -> None:
        if progress.stage not in starts:
            start_stage(progress.stage)

    def start_stage(name: str) -> None:
        synchronize(sr.device)
        starts[name] = time.perf_counter()

    result = sr.upscale(image, options, on_progress)
    start_stage("file")
    height, width = result.shape[2:]
    write(file, [result[0]], width=width, height=height, channels=3, format="png", depth=8)
    start_stage("end")
    times = [starts[name] for name in (*STAGES, "end")]
    return {name: times[i + 1] - times[i] for i, name in enumerate(STAGES)}


def measure(task: Task) -> list[Measurement]:
    """Runs one variant at one size in this process."""
    sr = load(task.model, task.variant)
    image = tensor_of(mosaic(task.size // SCALE))
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        for weight in task.fidelity_weights:
            options = preset_parameters(
                sr.preset, scale=SCALE, fidelity_weight=weight, steps=task.steps
            )
            rounds = [
                stages_of(sr, image, options, Path(folder, "result.png"))
                for _ in range(task.repeats + 1)
            ]
            medians = {name: statistics.median(r[name] for r in rounds[1:]) for name in STAGES}
            name, peak = task.variant.name, peak_memory(sr.device)
            measurements += figures_of(name, case_of(task.size, weight), medians, peak)
    return measurements


def measure_network(task: Task) -> list[Measurement]:
    """As `measure`, of a network of another project that enlarges in one stage."""
    torch.set_num_threads(task.model.threads)
    method = make_baseline(task.network, task.model.device)
    image = tensor_of(mosaic(task.size // SCALE))
    seconds = [next(iter(method.enlarge(image, SCALE))).seconds for _ in range(task.repeats + 1)]
    stages = {"decode": statistics.median(seconds[1:])}
    peak = peak_memory(torch.device(task.model.device))
    return [
        m
        for weight in task.fidelity_weights
        for m in figures_of(method.names[0], case_of(task.size, weight), stages, peak)
    ]


def case_of(size: int, fidelity_weight: float) -> str:
    return f"{size} px, w = {fidelity_weight:g}"


def figures_of(
    variant: str, case: str, stages: Mapping[str, float], peak: float
) -> list[Measurement]:
    """Of the stages, of all of them, and of memory."""
    seconds = dict(stages) if len(stages) > 1 else {}
    seconds["all"] = sum(stages.values())
    return [
        *(Measurement(variant, case, name, value, "s") for name, value in seconds.items()),
        Measurement(variant, case, "peak memory", peak, "bytes"),
    ]


def older(row: Row) -> list[Measurement]:
    """Of a build before 0.2.0."""
    case = case_of(row["size"], row["fidelity_weight"])
    return figures_of(row["way"], case, row["seconds"], row["peak_memory_bytes"])


def other_build(checkout: Path, task: Task) -> list[Measurement]:
    """What another checkout measures of its build."""
    arguments = [*task.model.arguments, "--repeats", str(task.repeats)]
    arguments += ["--sizes", str(task.size), "--w", *map(str, task.fidelity_weights)]
    arguments += ["--dtype", task.variant.dtype, "--compile", task.variant.compile]
    if task.steps is not None:
        arguments += ["--steps", str(task.steps)]
    return measure_checkout(checkout, "image", arguments, older)


def main() -> None:
    parser = command_parser(__doc__)
    add_model(parser)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--steps", type=int, help="the preset's")
    parser.add_argument("--sizes", nargs="+", type=result_side, default=[512], help="sides, px")
    parser.add_argument("--w", nargs="+", type=float, default=[0.0, 0.5], help="fidelity weights")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="off")
    parser.add_argument(
        "--compare", action="append", default=[], help="before, a checkout, or NETWORK=PATH"
    )
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    model = model_of(parser, a)
    if a.repeats < 1:
        parser.error(f"--repeats must be at least 1, but is {a.repeats}.")
    dtype = a.dtype or ("fp32" if model.device == "cpu" else "bf16")
    variants = [Variant(dtype, dtype, compile=a.compile)]
    if any(name in BEFORE for name in a.compare):
        variants.insert(0, Variant(f"before {dtype}", dtype, fuse=False))
    measurements: list[Measurement] = []
    for size in a.sizes:
        tasks = [Task(model, v, size, tuple(a.w), a.steps, a.repeats) for v in variants]
        for name in a.compare:
            if name in BEFORE:
                continue
            if Path(name).is_dir():
                measurements += other_build(Path(name), tasks[-1])
            else:
                network = Task(model, variants[-1], size, tuple(a.w), None, a.repeats, name)
                measurements += alone(measure_network, network)
        for task in tasks:
            measurements += alone(measure, task)
    subject = f"{model.preset}, one image alone"
    publish(Result.of("benchmarks.image", subject, model.device, measurements), a.json)


if __name__ == "__main__":
    main()
