"""Seconds per tile and step: one network call, encoder and UNet on one batch of tiles.

    python -m benchmarks.step
    python -m benchmarks.step --compare eager
    python -m benchmarks.step --compare ../other-checkout --dtypes bf16 --compile on --batch 1 4

Every variant runs in a process of its own, one after the other, so that its peak memory is its
own. Beside wall-clock seconds (the median) stand the processor's, the least of the repeats divided
by the threads: on a machine that others use as well they say more.

`--compare eager` puts before the optimised calls (fused, and compiled unless `--compile` says
otherwise) the same networks without either, in float32 and with float32 weights under bfloat16
autocast; then what fusing alone brings, and on a processor Winograd's convolutions with it; at
batch 1 and 4. `--compare CHECKOUT` puts another build's calls of the same kind before them.

A variant whose call takes longer than `--limit` is ended, and its seconds are given as more than
that: a processor without instructions for bfloat16 is a hundred times as slow at autocast's
convolutions. A first call that compiles is not limited.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.checkouts import Row, measure_checkout
from benchmarks.machine import peak_memory, synchronize, time_limit
from benchmarks.model import DTYPES, Model, Variant, add_model, load, model_of
from benchmarks.processes import alone
from benchmarks.report import command_parser, publish
from benchmarks.results import Measurement, Result
from models.compiler import CompileMode
from models.pipeline import StableSR
from models.presets import get_preset
from models.sampling import StepRequest

PER_TILE = "a tile and step"


@dataclass(frozen=True)
class Task:
    """One variant at one batch size."""

    model: Model
    variant: Variant
    batch: int
    repeats: int
    limit: float | None
    """Seconds that a call may take, one that compiles excepted"""


def measure(task: Task) -> list[Measurement]:
    """Runs one variant in this process; the first call is not counted in the others."""
    sr = load(task.model, task.variant)
    name, case = task.variant.name, f"batch {task.batch}"
    compiles = task.variant.compile != "off"
    try:
        wall, busy = time_calls(
            sr,
            task.batch,
            task.repeats,
            limit=task.limit,
            limit_first=not compiles,
            autocast=task.variant.autocast,
        )
    except TimeoutError:
        assert task.limit is not None
        return [Measurement(name, case, PER_TILE, task.limit / task.batch, "s", at_least=True)]
    seconds = statistics.median(wall[1:]) / task.batch
    processor = min(busy[1:]) / task.batch / task.model.threads
    measurements = figures(name, case, seconds, wall[0], peak_memory(sr.device), processor)
    # A call that was to be compiled and was not is no figure of compiled calls.
    if eager := sr.fallbacks["eager_failure"] if compiles else 0:
        measurements.append(Measurement(name, case, "calls not compiled", eager, "count"))
    return measurements


def time_calls(
    sr: StableSR,
    batch: int,
    repeats: int,
    *,
    limit: float | None = None,
    limit_first: bool = True,
    autocast: bool = False,
) -> tuple[list[float], list[float]]:
    """Seconds of calls, by the clock and of the processor; the first before the repeats.

    Raises:
        TimeoutError: one took longer than `limit`.
    """
    channels, side = sr.networks.config.unet.in_channels, sr.preset.tile
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randn(2, batch, channels, side, side, generator=generator).to(sr.device)
    precision = torch.autocast(sr.device.type, torch.bfloat16) if autocast else nullcontext()
    wall, busy = [], []
    for step in range(repeats + 1):
        request = StepRequest(tiles[0], tiles[1], 999 - step, None, 0, 1)
        synchronize(sr.device)
        start, start_busy = time.perf_counter(), time.process_time()
        with time_limit(limit if step or limit_first else None), precision:
            sr.predict([request])
            synchronize(sr.device)
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    return wall, busy


def figures(
    variant: str, case: str, seconds: float, first: float, peak: float, processor: float | None
) -> list[Measurement]:
    """Of a batch size; without `processor` where that waits for a device."""
    rows = {PER_TILE: seconds, "processor": processor, "first call": first}
    return [
        *(Measurement(variant, case, name, s, "s") for name, s in rows.items() if s is not None),
        Measurement(variant, case, "peak memory", peak, "bytes"),
    ]


def older(row: Row) -> list[Measurement]:
    """Of a build before 0.2.0."""
    name, case = row["way"], f"batch {row['batch']}"
    if "limit" in row:
        return [Measurement(name, case, PER_TILE, row["limit"] / row["batch"], "s", at_least=True)]
    names = ("seconds_per_tile_step", "first_seconds", "peak_memory_bytes", "processor_seconds")
    return figures(name, case, *(row[name] for name in names))


def variants(
    dtypes: Iterable[str], compile_: CompileMode, device: str, *, eager: bool
) -> list[Variant]:
    """What is measured; first what the others are compared with."""
    if not eager:
        return [Variant(dtype, dtype, compile=compile_) for dtype in dtypes]
    baselines = [
        Variant("eager fp32", fuse=False),
        Variant("eager bf16 autocast", fuse=False, autocast=True),
        Variant("fused fp32", winograd=False),
    ]
    if device == "cpu":
        baselines.append(Variant("fused fp32, Winograd"))
    return baselines + [Variant(f"optimised {dtype}", dtype, compile=compile_) for dtype in dtypes]


def main() -> None:
    parser = command_parser(__doc__)
    add_model(parser, preset="stablesr-512")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--compare", action="append", default=[], help="eager, or a checkout")
    parser.add_argument("--compile", choices=("auto", "on", "off"), help="on with --compare eager")
    parser.add_argument("--batch", nargs="+", type=int, help="1; with --compare eager 1 4")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=900, help="seconds that a call may take")
    a = parser.parse_args()
    model = model_of(parser, a)
    checkouts = [Path(name) for name in a.compare if name != "eager"]
    if wrong := [path for path in checkouts if not path.is_dir()]:
        parser.error(f"--compare must be eager or the folder of a checkout, but is {wrong[0]}.")
    eager = "eager" in a.compare
    compile_: CompileMode = a.compile or ("on" if eager else "off")
    batches = a.batch or ([1, 4] if eager else [1])
    measurements: list[Measurement] = []
    for checkout in checkouts:
        arguments = [*model.arguments, "--dtypes", *a.dtypes, "--compile", compile_]
        arguments += ["--batch", *map(str, batches)]
        arguments += ["--repeats", str(a.repeats), "--limit", str(a.limit)]
        measurements += measure_checkout(checkout, "step", arguments, older)
    for batch in batches:
        for variant in variants(a.dtypes, compile_, model.device, eager=eager):
            measurements += alone(measure, Task(model, variant, batch, a.repeats, a.limit))
    side = get_preset(model.preset).tile
    subject = f"{model.preset}, one {side} x {side} tile and step, encoder and UNet"
    publish(Result.of("benchmarks.step", subject, model.device, measurements), a.json)


if __name__ == "__main__":
    main()
