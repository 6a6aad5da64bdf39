"""Weights as they are shipped: a stage's in half the bytes, or the mean of several runs of it.

python -m tools.shipping runs/tiny/cfw/weights models/weights/tiny
python -m tools.shipping runs/a/cfw/weights runs/b/cfw/weights models/weights/tiny

The mean of runs from the same start is better than each (arXiv 2203.05482, section 2): what chance
has made of each is less in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from models.checkpoints.folder import load_folder, save_folder
from models.errors import ModelError
from models.networks.bundle import Networks


def main(arguments: Sequence[str] | None = None) -> int:
    """Rounds to float16, which what is shipped is held in; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.shipping")
    parser.add_argument("source", type=Path, nargs="+")
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    try:
        runs = [load_folder(path, torch.device("cpu"), torch.float32) for path in options.source]
    except ModelError as problem:
        print(problem, file=sys.stderr)
        return 1
    for path, run in zip(options.source, runs, strict=True):
        if run.config != runs[0].config:
            sentence = f"{path} and {options.source[0]} hold networks of different configurations"
            print(f"{sentence}: give weights of one start.", file=sys.stderr)
            return 1
    save_folder(_mean(runs), options.target, torch.float16)
    return 0


@torch.no_grad()
def _mean(runs: Sequence[Networks]) -> Networks:
    """The first, with the mean of every tensor in which they differ."""
    states = [run.state_dict() for run in runs]
    for name, tensor in states[0].items():
        tensors = [state[name] for state in states]
        # The others stay bit for bit: a mean has no -0.
        if not all(torch.equal(tensor, other) for other in tensors):
            tensor.copy_(torch.stack(tensors).mean(dim=0))
    return runs[0]


if __name__ == "__main__":
    sys.exit(main())
