"""Options that benchmarks have in common."""

from __future__ import annotations

import argparse

import torch

from models.presets import PRESETS

__all__ = ["DTYPES", "add_model", "dtype_of"]

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
