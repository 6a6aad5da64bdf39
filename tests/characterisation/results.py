"""The results of the cases on this machine, and what is kept of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import pyvips
import torch

from cli.local import LocalModel
from jobs.settings import Settings
from models.parameters import UpscaleParameters

from .cases import CASES, Case

FROZEN = Path(__file__).with_name("results.json")
SAMPLES = 4
"""Blocks a side whose means are kept beside the hash."""


class Machine(TypedDict):
    """What the last bits of a float32 depend on."""

    torch: str
    processor: str


class Result(TypedDict):
    """One image: the hash is of its decoded pixels, `means` of its blocks, in levels of 255."""

    sha256: str
    shape: list[int]
    """Height, width, channels"""
    means: list[float]


def machine() -> Machine:
    # Of those that have AVX-512 each generation adds up in its own order.
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(reversed([line.split("\t", 1) for line in lines if "\t" in line]))
    generation = [fields.get(name, "").strip(" :\t") for name in ("cpu family", "model")]
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "processor": f"{capability} {'.'.join(generation)}"}


def frozen() -> tuple[Machine, dict[str, Result]]:
    """What was frozen, and the machine it was frozen on."""
    file = json.loads(FROZEN.read_text())
    return file["machine"], file["results"]


def results(folder: Path) -> Iterator[tuple[str, Result]]:
    """Upscales every case in float32 on one thread; files lie in `folder`.

    Raises:
        InputError, JobFailure: as `LocalModel.upscale`.
    """
    settings = Settings(preset="tiny", device="cpu", tile_batch=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = LocalModel(settings)
        for case in CASES:
            yield case.name, result_of(case, model, folder)
    finally:
        torch.set_num_threads(threads)


def result_of(case: Case, model: LocalModel, folder: Path) -> Result:
    parameters = UpscaleParameters.model_validate(
        {"preset": "tiny", "seed": 0} | dict(case.parameters)
    )
    source, target = folder / "source", folder / f"target.{parameters.output_format}"
    source.write_bytes(case.file())
    model.upscale(source, {parameters.seed: target}, parameters, lambda moment: None)
    image = pyvips.Image.new_from_buffer(target.read_bytes(), "")
    levels = torch.from_numpy(image.numpy().reshape(image.height, image.width, -1).copy())
    coarse = torch.nn.functional.adaptive_avg_pool2d(
        levels.movedim(-1, 0).double() / (257 if levels.itemsize == 2 else 1), SAMPLES
    )
    return {
        "sha256": hashlib.sha256(image.write_to_memory()).hexdigest(),
        "shape": list(levels.shape),
        "means": [round(mean, 2) for mean in coarse.flatten().tolist()],
    }
