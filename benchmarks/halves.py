"""Half precision on this processor: emulated or native, and in float32 copies.

    python -m benchmarks.halves

Times a convolution and a linear layer of full-size networks in float32, in bfloat16 and float16 as
torch computes them, and with `models.arithmetic`, as ratios to float32 in one run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.machine import describe
from models.arithmetic import _Widened, is_widened


def seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def convolution(dtype: torch.dtype) -> Callable[[], object]:
    x = torch.randn(1, 320, 64, 64, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(320, 320, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, w, padding=1)


def linear(dtype: torch.dtype) -> Callable[[], object]:
    x, w = torch.randn(4096, 320, dtype=dtype), torch.randn(2560, 320, dtype=dtype)
    return lambda: F.linear(x, w)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    cpu = torch.device("cpu")
    print(describe(cpu))
    print(f"{'':14}{'dtype':>10}{'ratio':>8}{'in float32':>12}   taken")
    with torch.inference_mode():
        for made in (convolution, linear):
            plain = seconds(made(torch.float32), repeats)
            for dtype in (torch.bfloat16, torch.float16):
                run = made(dtype)
                own = seconds(run, repeats) / plain
                with _Widened(dtype):
                    wide = seconds(run, repeats) / plain
                taken = "in float32" if is_widened(cpu, dtype) else "its own"
                kind = str(dtype).removeprefix("torch.")
                print(f"{made.__name__:14}{kind:>10}{own:8.2f}{wide:12.2f}   {taken}")


if __name__ == "__main__":
    main()
