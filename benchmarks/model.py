"""The model that a benchmark runs: its options, and how its network calls are computed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch

from models.compiler import CompileMode, CompileOptions
from models.config import ModelConfig
from models.memory import MemoryBudget
from models.pipeline import StableSR
from models.presets import PRESETS, get_preset

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Variant:
    """How network calls are computed."""

    name: str
    dtype: str = "fp32"
    """Of the weights"""
    fuse: bool = True
    winograd: bool = True
    """Where it suits the device"""
    compile: CompileMode = "off"
    autocast: bool = False
    """Whether operations that can be are computed in bfloat16 all the same"""


@dataclass(frozen=True)
class Model:
    """Which weights, and where."""

    preset: str
    weights: str
    """preset or random"""
    device: str
    threads: int

    @property
    def arguments(self) -> list[str]:
        """The options of `add_model`, for another build's command."""
        where = ["--device", self.device, "--threads", str(self.threads)]
        return ["--preset", self.preset, "--weights", self.weights, *where]


def add_model(parser: argparse.ArgumentParser, preset: str = "tiny") -> None:
    """The options that `model_of` reads."""
    parser.add_argument("--preset", choices=tuple(PRESETS), default=preset)
    parser.add_argument(
        "--weights", choices=("random", "preset"), help="random where no weights are shipped"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def model_of(parser: argparse.ArgumentParser, a: argparse.Namespace) -> Model:
    """The model of the options; ends the process when there is none."""
    weights = a.weights or ("preset" if get_preset(a.preset).embedded else "random")
    if weights == "random" and get_preset(a.preset).embedded:
        parser.error(f"{a.preset} comes with its weights: use --weights preset.")
    return Model(a.preset, weights, a.device, a.threads)


def load(model: Model, variant: Variant, budget: MemoryBudget | None = None) -> StableSR:
    """The preset's weights, or networks of full size with random ones, in this process."""
    torch.set_num_threads(model.threads)
    budget = budget or MemoryBudget()
    if not variant.winograd:
        # Larger kernels are made only where memory has room.
        budget = replace(budget, memory_limit=1)
    dtype, compiling = DTYPES[variant.dtype], CompileOptions(variant.compile)
    if model.weights == "preset":
        return StableSR.from_preset(
            model.preset, model.device, dtype, budget, fuse=variant.fuse, compiling=compiling
        )
    return StableSR.load(
        ModelConfig(),
        get_preset(model.preset),
        model.device,
        dtype,
        budget,
        fuse=variant.fuse,
        compiling=compiling,
    )
