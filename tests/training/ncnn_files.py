"""Networks written as ncnn writes them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from training.realesrgan import CompactNet, RRDBNet


def exported(parts: Sequence[nn.Module], *, half: bool = False) -> bytes:
    """The `.bin` of convolutions and PReLUs, in their order."""
    data = b""
    for part in parts:
        if isinstance(part, nn.PReLU):
            data += part.weight.detach().numpy().astype("<f4").tobytes()
            continue
        assert isinstance(part, nn.Conv2d)
        assert part.bias is not None
        raw = part.weight.detach().numpy().astype("<f2" if half else "<f4").tobytes()
        data += struct.pack("<I", 0x01306B47 if half else 0) + raw + bytes(-len(raw) % 4)
        data += part.bias.detach().numpy().astype("<f4").tobytes()
    return data


def write_model(folder: Path, name: str, parts: Sequence[nn.Module]) -> Path:
    """A folder with `name.bin`."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.bin").write_bytes(exported(parts))
    return folder


def small_rrdb(seed: int) -> RRDBNet:
    torch.manual_seed(seed)
    # Odd widths, so that some layers have to be filled up to 4 bytes.
    return RRDBNet(blocks=1, width=5, growth=3)


def small_compact(seed: int, *, width: int = 8, count: int = 2) -> CompactNet:
    """Every PReLU with slopes of its own."""
    torch.manual_seed(seed)
    network = CompactNet(width, count)
    for part in network.layers:
        if isinstance(part, nn.PReLU):
            part.weight.data.uniform_(0, 0.5)
    return network
