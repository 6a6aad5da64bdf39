"""Peak memory of whole images, against the size of their canvas.

    python -m benchmarks.memory --sizes 512 1024 2048 4096
    python -m benchmarks.memory --preset stablesr-512 --room 1GB

Each size goes the whole way in a process of its own: a PNG file is read, upsampled, encoded,
denoised for `--steps` steps, decoded and written as a PNG file, row by row. Its peak is that of
the process's resident memory from when the weights are loaded on, less what was resident then
(on a GPU: of the allocator). The slope is the growth of the peak over that of the canvas, from the
first size to the last:

    canvas = upsampled input and decoded image, float32, and three latents: the input's, the
             noisy one and its prediction

Each size may take what is loaded, its canvas and `--room`; or `--memory` in total.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.images import SCALE, result_side, synthetic_png
from benchmarks.machine import peak_memory, reset_peak_memory, synchronize
from benchmarks.model import DTYPES, Model, Variant, add_model, load, model_of
from benchmarks.processes import alone
from benchmarks.report import command_parser, publish
from benchmarks.results import Measurement, Result, Unit
from jobs.settings import parse_bytes
from models.memory import MemoryBudget, resident, trim
from models.parameters import preset_parameters
from models.pipeline import Progress
from models.presets import get_preset
from worker.images import decode, rows_of, write

STAGES = ("encode", "denoise", "decode", "write")


@dataclass(frozen=True)
class Task:
    """One size."""

    model: Model
    dtype: str
    size: int
    """Side of the result, px"""
    steps: int
    overlap: int | None
    """Latent pixels that two tiles share; None is the preset's"""
    limit: int | None = None
    """Bytes that the process may take in total"""


class Stages:
    """Peak memory and seconds of one stage after the other."""

    def __init__(self, device: torch.device, weights: int) -> None:
        self._device, self._weights = device, weights
        self._name = ""
        self._start = 0.0
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def start(self, name: str) -> None:
        """Ends the stage before, where there is one; "" starts none."""
        if name == self._name:
            return
        synchronize(self._device)
        if self._name:
            self.seconds[self._name] = time.perf_counter() - self._start
            self.peaks[self._name] = peak_memory(self._device) - self._weights
        reset_peak_memory(self._device)
        self._name, self._start = name, time.perf_counter()


def bytes_after_loading(task: Task) -> int:
    """Bytes of this process when the weights are loaded."""
    load(task.model, Variant("", task.dtype))
    return now(torch.device(task.model.device))


def now(device: torch.device) -> int:
    trim()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()


def measure(task: Task) -> list[Measurement]:
    """Goes the whole way in this process."""
    sr = load(task.model, Variant("", task.dtype), MemoryBudget(memory_limit=task.limit))
    options = preset_parameters(sr.preset, scale=SCALE, steps=task.steps, tile_overlap=task.overlap)
    file = synthetic_png(task.size // SCALE, 0)
    weights = now(sr.device)
    stages = Stages(sr.device, weights)

    def on_progress(progress: Progress) -> None:
        stages.start(progress.stage)

    image = decode(file, 10**9)
    with tempfile.TemporaryDirectory() as folder:
        for rows in sr.upscale_rows(image.rgb, options, [0], on_progress):
            stages.start("write")
            write(
                Path(folder, "result.png"),
                rows_of(image, rows, task.size, task.size),
                width=task.size,
                height=task.size,
                channels=image.channels,
                format="png",
                depth=8,
            )
            stages.start("")
    figures: list[tuple[str, float, Unit]] = [
        ("loaded", weights, "bytes"),
        ("canvas", canvas_bytes(task), "bytes"),
        ("peak memory", max(stages.peaks.values()), "bytes"),
        *((name, stages.peaks[name], "bytes") for name in STAGES),
        ("all", sum(stages.seconds.values()), "s"),
    ]
    return [
        Measurement("", f"{task.size} px", quantity, value, unit)
        for quantity, value, unit in figures
    ]


def canvas_bytes(task: Task) -> int:
    """As the module's head defines it; its sides are the preset's at least."""
    side = -(-max(task.size, get_preset(task.model.preset).native) // 8) * 8
    return 4 * (2 * 3 * side**2 + 3 * 4 * (side // 8) ** 2)


def slope_of(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The growth of the peak over that of the canvas; nothing where that does not grow."""
    peaks = [m for m in measurements if m.quantity == "peak memory"]
    canvases = [m for m in measurements if m.quantity == "canvas"]
    if canvases[0].value == canvases[-1].value:
        return []
    slope = (peaks[-1].value - peaks[0].value) / (canvases[-1].value - canvases[0].value)
    case = f"{peaks[0].case} to {peaks[-1].case}"
    return [Measurement("", case, "slope", slope, "times")]


def main() -> None:
    parser = command_parser(__doc__)
    add_model(parser)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="bf16 with random weights")
    parser.add_argument("--sizes", type=result_side, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--overlap", type=int, help="latent pixels; fewer tiles, the same memory")
    parser.add_argument("--room", type=parse_bytes, default=parse_bytes("512MB"))
    parser.add_argument("--memory", type=parse_bytes)
    a = parser.parse_args()
    model = model_of(parser, a)
    dtype = a.dtype or ("fp32" if model.weights == "preset" else "bf16")
    tasks = [Task(model, dtype, size, a.steps, a.overlap, a.memory) for size in sorted(a.sizes)]
    weights = 0 if a.memory else alone(bytes_after_loading, tasks[0])
    measurements: list[Measurement] = []
    for task in tasks:
        limit = a.memory or weights + canvas_bytes(task) + a.room
        measurements += alone(measure, replace(task, limit=limit))
    measurements += slope_of(measurements)
    subject = f"{model.preset}, {dtype}, peak memory beside what is loaded"
    publish(Result.of("benchmarks.memory", subject, model.device, measurements), a.json)


if __name__ == "__main__":
    main()
