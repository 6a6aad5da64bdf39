"""The model that a benchmark runs: its options, and loading it; and processes of their own."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

from models.compiler import CompileOptions
from models.config import ModelConfig
from models.pipeline import StableSR
from models.plan import Resources
from models.presets import PRESETS, get_preset

__all__ = ["DTYPES", "add_model", "alone", "check_model", "dtype_of", "load"]

T = TypeVar("T")
A = TypeVar("A")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, where, in which precision, and how its figures are printed."""
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--weights", choices=("random", "preset"), default="preset")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--steps", type=int, help="the preset's, if not given")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def dtype_of(given: argparse.Namespace) -> str:
    """The precision that was asked for, or what suits the device."""
    dtype: str | None = given.dtype
    return dtype or ("fp32" if given.device == "cpu" else "bf16")


def check_model(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Ends the process where there is no such model."""
    if (given.preset, given.weights) == ("tiny", "random"):
        parser.error("tiny comes with its weights: use --weights preset.")


def load(
    preset: str,
    weights: str,
    device: str | torch.device,
    dtype: torch.dtype,
    resources: Resources | None = None,
    *,
    fold: bool = True,
    compiling: CompileOptions | None = None,
) -> StableSR:
    """The preset's weights, or networks of full size with random ones."""
    if weights == "random":
        return StableSR.with_random_weights(
            ModelConfig(),
            get_preset(preset),
            device,
            dtype,
            resources,
            fold=fold,
            compiling=compiling,
        )
    return StableSR.from_preset(preset, device, dtype, resources, fold=fold, compiling=compiling)


def alone(run: Callable[[A], T], task: A) -> T:
    """`run(task)` in a process of its own.

    Raises:
        BrokenProcessPool: it was killed, for want of memory as a rule.
    """
    # Not a multiprocessing.Pool, which waits for ever for what a killed process was to answer.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(run, task).result()
