"""Weights as they are shipped: a stage's, in half the bytes.

python -m tools.shipping runs/tiny/cfw/weights models/weights/tiny
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from models.checkpoints.folder import load_folder, save_folder
from models.errors import ModelError


def main(arguments: Sequence[str] | None = None) -> int:
    """Rounds to float16, which what is shipped is held in; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.shipping")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    try:
        networks = load_folder(options.source, torch.device("cpu"), torch.float16)
    except ModelError as problem:
        print(problem, file=sys.stderr)
        return 1
    save_folder(networks, options.target, torch.float16)
    return 0


if __name__ == "__main__":
    sys.exit(main())
