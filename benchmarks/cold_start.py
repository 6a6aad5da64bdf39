"""From the start of a process to its first picture.

    python -m benchmarks.cold_start
    python -m benchmarks.cold_start --compile --tiles 2

A new interpreter imports, loads and folds the weights, compiles network calls where asked, and
upscales one image twice: what a worker does before its first job ends, without queue and files.
With `--compile` three processes follow one another: one that does not compile, one that compiles
with nothing kept from before, and one that finds what that one has kept. `--tiles` bounds the sizes
of calls that are compiled, which are the powers of two up to it.

What is kept lies in temporary folders. Nothing that torch, Triton or CUDA's driver has kept
elsewhere is found or changed, and what the environment says of torch's and Triton's caches does not
hold. Files that were read before are in the system's memory: how fast a disk is does not show.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.machine import describe, synchronize
from benchmarks.model import DTYPES, add_model, check_model, dtype_of, load
from models.compiler import CompileOptions
from models.options import Options
from models.plan import Resources

IMPORTED = time.time()
PHASES = ("start", "load", "compile", "first image", "second image")
# Of each process's caches. Eager kernels of torch may be Triton's and be kept as well.
FOLDERS = {
    "not compiled": "eager",
    "compiled, nothing kept": "compiled",
    "compiled, restarted": "compiled",
}


@dataclass(frozen=True)
class Task:
    """One process."""

    name: str
    preset: str
    weights: str
    device: str
    dtype: str
    compile: bool
    cache: str
    """Folder for what is compiled"""
    tiles: int
    size: int
    """Side of the result, px"""
    steps: int | None
    started: float = 0.0
    """Seconds since the epoch"""


@dataclass(frozen=True)
class Measured:
    """What one process took."""

    name: str
    seconds: dict[str, float]
    """Of each phase"""
    eager_calls: int
    """That were to be compiled and were not"""
    machine: str

    @property
    def to_first_image(self) -> float:
        return sum(seconds for phase, seconds in self.seconds.items() if phase != PHASES[-1])


def measure(task: Task) -> Measured:
    """In a process that was started for it."""
    sr = load(
        task.preset,
        task.weights,
        task.device,
        DTYPES[task.dtype],
        Resources(tile_batch=task.tiles),
        compiling=CompileOptions("on" if task.compile else "off", Path(task.cache)),
    )
    seconds = {"start": IMPORTED - task.started}
    at = IMPORTED

    def ended(phase: str) -> None:
        nonlocal at
        synchronize(sr.device)
        before, at = at, time.time()
        seconds[phase] = at - before

    ended("load")
    side = task.size // 4
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    options = Options(scale=4, steps=task.steps)
    sr.compile()
    ended("compile")
    sr.upscale(image, options)
    ended("first image")
    sr.upscale(image, options)
    ended("second image")
    return Measured(task.name, seconds, sr.denoiser.eager_calls.total(), describe(sr.device))


def environment(given: Mapping[str, str], cache: str) -> dict[str, str]:
    """With every cache in that folder. Variables may also name a remote one, or turn one off."""
    own = {
        name: value
        for name, value in given.items()
        if not (name.startswith(("TORCH", "TRITON")) and "CACHE" in name)
    }
    return own | {
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "TRITON_CACHE_DIR": str(Path(cache) / "triton"),
        "CUDA_CACHE_PATH": str(Path(cache) / "driver"),
    }


def measured(task: Task) -> Measured:
    """`measure` in a new interpreter.

    Raises:
        subprocess.CalledProcessError: it failed; it has said why.
    """
    given = asdict(task) | {"started": time.time()}
    command = [sys.executable, "-m", "benchmarks.cold_start", "--child", json.dumps(given)]
    out = subprocess.run(
        command,
        env=environment(os.environ, task.cache),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Measured(**json.loads(out.stdout.splitlines()[-1]))


def table(results: Sequence[Measured]) -> str:
    """For a person."""
    lines = [
        results[0].machine,
        f"{'seconds':32}" + "".join(f"{phase:>14}" for phase in PHASES) + f"{'to the first':>14}",
    ]
    lines += [
        f"{r.name:32}"
        + "".join(f"{r.seconds[phase]:14.2f}" for phase in PHASES)
        + f"{r.to_first_image:14.2f}"
        + (f"  {r.eager_calls} calls not compiled" if r.eager_calls else "")
        for r in results
    ]
    for restarted in results[2:]:
        ratio = results[1].to_first_image / restarted.to_first_image
        lines.append(f"A restart that finds what was compiled is {ratio:.2f} times as fast.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    parser.add_argument("--compile", action="store_true", help="compiled too, in two ways")
    parser.add_argument("--tiles", type=int, default=8, help="of a network call, at most")
    parser.add_argument("--size", type=int, default=512, help="side of the result, px")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child is not None:
        print(json.dumps(asdict(measure(Task(**json.loads(a.child))))))
        return
    check_model(parser, a)
    if a.tiles < 1 or a.size < 4 or a.size % 4:
        parser.error("a call must have a tile, and the size be a multiple of 4.")
    dtype = dtype_of(a)
    names = list(FOLDERS) if a.compile else ["not compiled"]
    with tempfile.TemporaryDirectory() as folder:
        results = [
            measured(
                Task(
                    name,
                    a.preset,
                    a.weights,
                    a.device,
                    dtype,
                    name != "not compiled",
                    str(Path(folder) / FOLDERS[name]),
                    a.tiles,
                    a.size,
                    a.steps,
                )
            )
            for name in names
        ]
    if a.json:
        figures = [asdict(r) | {"to_first_image": r.to_first_image} for r in results]
        print(json.dumps(figures, indent=2))
    else:
        print(table(results))


if __name__ == "__main__":
    main()
