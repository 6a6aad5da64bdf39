"""Peak memory of whole images, against the size of their canvas.

    python -m benchmarks.memory --preset stablesr-512 --sizes 512 1024 2048 4096 --json FILE

Each size goes the whole way in a process of its own: a PNG file is read, upsampled, encoded,
denoised for `--steps` steps, decoded and written as a PNG file, row by row. Its peak is that of
the process' resident memory from when the weights are loaded on, less what was resident then
(on a GPU: of the allocator). The slope between two sizes is the growth of the peak over that of
the canvas:

    canvas = upsampled input and decoded image, float32, and three latents: the input's, the
             noisy one and its prediction

Each size may take what is loaded, its canvas and `--room`; or `--memory` in all. FILE holds what
was measured, size by size: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe, synchronize
from benchmarks.model import alone, load
from jobs.settings import parse_bytes
from models.geometry import Layout
from models.memory import resident, trim
from models.options import Options
from models.plan import Resources
from models.presets import PRESETS
from models.sampling import Step, drive
from worker.images import decode, rows_of, write

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STAGES = ("encode", "denoise", "decode", "write")


@dataclass(frozen=True)
class Task:
    """One size, and everything that its figures depend on."""

    size: int
    preset: str
    weights: str
    device: str
    dtype: str
    steps: int
    room: int
    memory: int | None
    threads: int
    overlap: int | None = None
    """Latent cells that two tiles share; None is the preset's"""


@dataclass(frozen=True)
class Measured:
    """Bytes, unless it says seconds."""

    canvas: int
    loaded: int
    """Resident when the weights were loaded"""
    peak: int
    """Most that was resident beside that"""
    peaks: dict[str, int]
    """The same in each stage"""
    planned: dict[str, int]
    """What the plan expected of each stage, beside the weights"""
    scratch: int
    """Planned for the disk at most"""
    keep: str
    rows: int
    tile_batch: int
    tiles: int
    changes: int
    """How often the plan had to change"""
    seconds: dict[str, float]
    file: int
    machine: str


class Meter:
    """Peak memory and seconds of stages."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        trim()
        self.loaded = torch.cuda.memory_allocated(device) if self._cuda else resident()

    @property
    def _cuda(self) -> bool:
        return self._device.type == "cuda"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            # Begins the kernel's record of the peak (VmHWM) anew.
            Path("/proc/self/clear_refs").write_text("5")
        began = time.perf_counter()
        yield
        synchronize(self._device)
        self.seconds[name] = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated(self._device) if self._cuda else _resident_peak()
        self.peaks[name] = peak - self.loaded


def _resident_peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(kilobytes) * 1024


def canvas_bytes(layout: Layout, channels: int) -> int:
    """As the module's head defines it."""
    height, width = layout.padded
    cells = layout.grid.height * layout.grid.width
    return 4 * (2 * 3 * height * width + 3 * channels * cells)


def measure(task: Task) -> Measured:
    """Goes the whole way in this process."""
    torch.set_num_threads(task.threads)
    device, dtype = torch.device(task.device), DTYPES[task.dtype]
    preset = PRESETS[task.preset]
    sr = load(task.preset, task.weights, device, dtype)
    options = Options(steps=task.steps, tile_overlap=task.overlap)
    side = round(task.size / options.scale)
    folder = Path(tempfile.mkdtemp(prefix="stablesr-memory-"))
    try:
        _picture(folder / "in.png", side)
        meter = Meter(device)
        config = sr.networks.config
        layout = Layout.of(config, preset, side, side, options)
        canvas = canvas_bytes(layout, config.unet.in_channels)
        limit = task.memory or meter.loaded + canvas + task.room
        sr.planner.resources = Resources(memory_limit=limit, offload=False)
        picture = decode((folder / "in.png").read_bytes(), 10**9)
        with meter.stage("encode"):
            prepared = sr.prepare(picture.rgb, options)
        plan = prepared.plan
        batch = plan.tile_batch

        def predict(step: Step) -> Iterator[Tensor]:
            for start in range(0, len(step), batch):
                yield from sr.predict([step.part(start, min(start + batch, len(step)))])[0]

        with prepared:
            with meter.stage("denoise"):
                latent = drive(sr.sample(prepared, options), predict)
            with meter.stage("decode"):
                rows = sr.rows(prepared, latent, options)
        with meter.stage("write"):
            height, width = plan.layout.size
            write(
                folder / "out.png",
                rows_of(picture, rows, height, width),
                width=width,
                height=height,
                channels=picture.channels,
                format="png",
                depth=8,
            )
        size = (folder / "out.png").stat().st_size
    finally:
        shutil.rmtree(folder)
    held = sr.planner.estimate.weights.autoencoder + sr.planner.estimate.weights.denoiser
    return Measured(
        canvas=canvas,
        loaded=meter.loaded,
        peak=max(meter.peaks.values()),
        peaks=meter.peaks,
        planned={
            name: sum(getattr(plan.peaks, name)[: 1 if device.type == "cuda" else 2]) - held
            for name in STAGES[:3]
        },
        scratch=max(peak.disk for peak in plan.peaks),
        keep=plan.pieces.keep,
        rows=plan.pieces.rows,
        tile_batch=plan.tile_batch,
        tiles=plan.tiles,
        changes=sum(sr.changes.counts.values()),
        seconds=meter.seconds,
        file=size,
        machine=describe(device),
    )


def _picture(path: Path, side: int) -> None:
    """A photograph's like: smooth, with grain."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 3, 16, 16), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    image = (smooth + 0.05 * torch.randn((1, 3, side, side), generator=generator)).clamp(0, 1)
    write(path, iter(image), width=side, height=side, channels=3, format="png", depth=8)


def table(results: dict[int, Measured]) -> str:
    """For a person."""
    first = next(iter(results.values()))
    lines = [
        f"{first.machine}; {first.loaded / 1e9:.2f} GB resident when loaded",
        f"{'size':>6}{'canvas MB':>11}{'peak MB':>9}{'slope':>7}{'encode':>8}{'denoise':>9}"
        f"{'decode':>8}{'write':>7}{'scratch GB':>12}{'keep':>8}{'rows':>6}{'batch':>7}{'tiles':>7}"
        f"{'seconds':>9}",
    ]
    before: Measured | None = None
    for size, m in sorted(results.items()):
        slope = ""
        if before is not None:
            slope = f"{(m.peak - before.peak) / (m.canvas - before.canvas):.2f}"
        stages = "".join(
            f"{m.peaks[name] / 1e6:{width}.0f}"
            for name, width in zip(STAGES, (8, 9, 8, 7), strict=True)
        )
        lines.append(
            f"{size:6}{m.canvas / 1e6:11.0f}{m.peak / 1e6:9.0f}{slope:>7}{stages}"
            f"{m.scratch / 1e9:12.2f}{m.keep:>8}{m.rows:6}{m.tile_batch:7}{m.tiles:7}"
            f"{sum(m.seconds.values()):9.0f}"
        )
        before = m
    sizes = sorted(results)
    if len(sizes) > 1:
        low, high = results[sizes[0]], results[sizes[-1]]
        slope_all = (high.peak - low.peak) / (high.canvas - low.canvas)
        lines.append(f"slope from {sizes[0]} to {sizes[-1]}: {slope_all:.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--weights", choices=("random", "preset"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES))
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--overlap", type=int, help="latent cells; fewer tiles, the same memory")
    parser.add_argument("--room", type=parse_bytes, default=parse_bytes("512MB"))
    parser.add_argument("--memory", type=parse_bytes)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="read and written: what is there is not repeated")
    a = parser.parse_args()
    weights = a.weights or ("preset" if a.preset == "tiny" else "random")
    dtype = a.dtype or ("float32" if a.preset == "tiny" else "bfloat16")
    file = json.loads(a.json.read_text()) if a.json and a.json.exists() else []
    results: dict[int, Measured] = {}
    for size in a.sizes:
        task = Task(
            size,
            a.preset,
            weights,
            a.device,
            dtype,
            a.steps,
            a.room,
            a.memory,
            a.threads,
            a.overlap,
        )
        done = [Measured(**entry["measured"]) for entry in file if entry["task"] == asdict(task)]
        if done:
            results[size] = done[-1]
            continue
        results[size] = alone(measure, task)
        file.append({"task": asdict(task), "measured": asdict(results[size])})
        if a.json:
            a.json.write_text(json.dumps(file, indent=2) + "\n")
        print(table(results), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
