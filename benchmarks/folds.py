"""What each fold saves, alone and all together, and how exact it is.

    python -m benchmarks.folds
    python -m benchmarks.folds --upsampling

The time is that of encoder and UNet for one batch of tiles: the networks with a fold against those
without, by turns in one process, as the ratio of medians and of the least processor time. On a
processor, in float32, all folds with convolutions in another basis (`models.folding.winograd`) come
last. The error is that of float64 networks of small widths. `--upsampling` times the decoder's and
the UNet's upsamplers alone: nearest neighbours and a convolution, four phases, a transposed
convolution.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.machine import describe, synchronize
from models.checkpoints.folder import random_networks
from models.config import AutoencoderConfig, EncoderConfig, ModelConfig, UNetConfig
from models.folding import FOLDS, fold
from models.folding.upsampling import PhaseUpsample
from models.folding.winograd import fold_convolutions, is_worthwhile
from models.networks.bundle import Networks

CPU = torch.device("cpu")
SMALL = ModelConfig(
    unet=UNetConfig(widths=(32, 64, 96, 96), head_channels=16, context_width=32, groups=8),
    encoder=EncoderConfig(widths=(32, 64, 96, 96), groups=8),
    autoencoder=AutoencoderConfig(widths=(16, 32, 32, 32), layers=1, groups=8),
    context_tokens=7,
)
WINOGRAD = "all, in another basis"
# Channels and side of the map that is doubled: UNet, then decoder.
UPSAMPLERS = ((1280, 8), (1280, 16), (640, 32), (512, 64), (256, 128))


@dataclass(frozen=True)
class Measured:
    """One row."""

    name: str
    seconds: float
    """Median of a call"""
    ratio: float
    """Of the medians: what it is compared with, divided by this"""
    processor_ratio: float
    """Of the least processor times"""
    error: float
    """Relative, L2, in float64"""


def timed(calls: list[Callable[[], object]], device: torch.device, repeats: int) -> list[Times]:
    """Calls by turns, so that what disturbs one disturbs all; the first round is not counted."""
    found = [Times([], []) for _ in calls]
    for turn in range(repeats + 1):
        for call, times in zip(calls, found, strict=True):
            synchronize(device)
            began, busy = time.perf_counter(), time.process_time()
            call()
            synchronize(device)
            if turn:
                times.wall.append(time.perf_counter() - began)
                times.processor.append(time.process_time() - busy)
    return found


@dataclass(frozen=True)
class Times:
    """Seconds of each call."""

    wall: list[float]
    processor: list[float]


def compared(name: str, base: Times, times: Times, error: float) -> Measured:
    """One row from two lists of times."""
    seconds = statistics.median(times.wall)
    return Measured(
        name,
        seconds,
        statistics.median(base.wall) / seconds,
        min(base.processor) / min(times.processor),
        error,
    )


def prediction(networks: Networks, tiles: Tensor) -> Callable[[], Tensor]:
    """A call of encoder and UNet."""
    timesteps = [500] * tiles.shape[1]
    return lambda: networks.predict(tiles[0], tiles[1], timesteps, None)


def noise(config: ModelConfig, batch: int, side: int, like: Tensor) -> Tensor:
    shape = (2, batch, config.unet.in_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)


def changed(networks: Networks, names: list[str], *, winograd: bool) -> Networks:
    """With these folds, in place."""
    fold(networks, names)
    if winograd:
        fold_convolutions(networks)
    return networks


def error_of(names: list[str], *, winograd: bool) -> float:
    """Relative error of small float64 networks with these folds."""
    plain, folded = (random_networks(SMALL, CPU, torch.float64) for _ in range(2))
    changed(folded, names, winograd=winograd)
    tiles = noise(SMALL, 2, 16, plain.context)
    right, ours = prediction(plain, tiles)(), prediction(folded, tiles)()
    return float((ours - right).norm() / right.norm())


def folds(a: argparse.Namespace) -> list[Measured]:
    """Each fold alone, then all, then convolutions in another basis as well."""
    device, dtype = torch.device(a.device), getattr(torch, a.dtype)
    config = ModelConfig()
    plain = random_networks(config, device, dtype)
    tiles = noise(config, a.batch, a.side, plain.context)
    results = []
    ways = {name: [name] for name in FOLDS} | {"all": list(FOLDS)}
    if is_worthwhile(device, dtype):
        ways[WINOGRAD] = list(FOLDS)
    for name, names in ways.items():
        winograd = name == WINOGRAD
        folded = changed(copy.deepcopy(plain), names, winograd=winograd)
        calls: list[Callable[[], object]] = [prediction(plain, tiles), prediction(folded, tiles)]
        base, times = timed(calls, device, a.repeats)
        results.append(compared(name, base, times, error_of(names, winograd=winograd)))
    return results


def upsamplers(a: argparse.Namespace) -> list[Measured]:
    """The same doubling in three ways, channels last."""
    device, dtype = torch.device(a.device), getattr(torch, a.dtype)
    results: list[Measured] = []
    for channels, side in UPSAMPLERS:
        layer = Upsample2D(channels, use_conv=True).to(device, torch.float64)
        conv = layer.conv
        assert isinstance(conv, nn.Conv2d)
        kernel = transposed(conv.weight)
        x = torch.randn(1, channels, 4, 5, dtype=torch.float64, device=device)
        right, made = layer(x), PhaseUpsample(conv)
        errors = [
            float((ours - right).norm() / right.norm())
            for ours in (right, made(x), F.conv_transpose2d(x, kernel, conv.bias, 2, 1))
        ]
        for part in (layer, made):
            part.to(dtype)
            for parameter in part.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.contiguous(memory_format=torch.channels_last)
        x = torch.randn(1, channels, side, side, device=device)
        x, kernel = (t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, kernel))
        calls: list[Callable[[], object]] = [
            lambda x=x, layer=layer: layer(x),
            lambda x=x, made=made: made(x),
            lambda x=x, k=kernel, b=conv.bias: F.conv_transpose2d(x, k, b, 2, 1),
        ]
        found = timed(calls, device, a.repeats)
        for name, times, error in zip(
            ("nearest and 3x3", "four phases", "transposed"), found, errors, strict=True
        ):
            row = compared(f"{channels} x {side} x {side} {name}", found[0], times, error)
            results.append(row)
    return results


def transposed(weight: Tensor) -> Tensor:
    """A 3x3 kernel (out, in, 3, 3) as that (in, out, 4, 4) of the transposed convolution."""
    kernel = weight.new_zeros((*weight.shape[:2], 4, 4))
    for row in range(2):
        for column in range(2):
            kernel[:, :, row : row + 3, column : column + 3] += weight
    return kernel.flip(2, 3).transpose(0, 1)


def table(results: list[Measured], machine: str) -> str:
    """For a person."""
    lines = [machine, f"{'':32}{'median s':>10}{'ratio':>7}{'CPU':>7}{'error':>10}"]
    lines += [
        f"{r.name:32}{r.seconds:10.3f}{r.ratio:7.3f}{r.processor_ratio:7.3f}{r.error:10.1e}"
        for r in results
    ]
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--side", type=int, default=64, help="of a tile, latent cells")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--upsampling", action="store_true", help="the upsamplers alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    results = upsamplers(a) if a.upsampling else folds(a)
    if a.json:
        print(json.dumps([asdict(r) for r in results], indent=2))
    else:
        print(table(results, describe(torch.device(a.device))))


if __name__ == "__main__":
    main()
