"""A run so small that a stage takes seconds: narrow networks, photographs of noise and squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoints.folder import load_folder, save_folder
from models.config import ModelConfig
from models.networks.bundle import Networks
from models.networks.compact import CompactAutoencoder
from tests.models.narrow import CONFIG
from training.config import RunSettings

__all__ = [
    "CPU",
    "Bicubic",
    "base_weights",
    "learned_names",
    "loop",
    "settings_of",
    "write_photographs",
]

CPU = torch.device("cpu")


def write_photographs(folder: Path) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for at in range(3):
        pixels = np.kron(draw.integers(0, 256, (10, 12, 3)), np.ones((10, 10, 1)))
        pixels = pixels + draw.normal(0, 5, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{at}.png")
    return folder


def base_weights(folder: Path, config: ModelConfig = CONFIG) -> Path:
    torch.manual_seed(3)
    networks = Networks(config)
    if isinstance(networks.autoencoder, CompactAutoencoder):
        # Of zeros, as it starts, nothing before it would learn in the first step.
        nn.init.normal_(networks.autoencoder.decoder.head.conv_out.weight, std=0.1)
    save_folder(networks, folder, torch.float32)
    return folder


class Bicubic(nn.Module):
    """Stands in for the teacher, whose own network is too large for a test."""

    def forward(self, image: Tensor) -> Tensor:
        return F.interpolate(image, scale_factor=4, mode="bicubic")


def loop(steps: int, **given: Any) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch": 2,
        "learning_rate": 1e-3,
        "log_every": 1,
        "save_every": 6,
        **given,
    }


def settings_of(tmp_path: Path, config: ModelConfig = CONFIG, /, **tables: Any) -> RunSettings:
    """Settings with photographs and a base of `config` below `tmp_path`, made where missing."""
    photographs, base = tmp_path / "photographs", tmp_path / "base"
    if not photographs.exists():
        write_photographs(photographs)
        base_weights(base, config)
    return RunSettings.model_validate(
        {"device": "cpu", "base": str(base), "data": {"photographs": photographs}, **tables}
    )


def learned_names(before: Path, after: Path) -> set[str]:
    """Tensors that are not bit for bit the same."""
    old = load_folder(before, CPU, torch.float32).state_dict()
    new = load_folder(after, CPU, torch.float32).state_dict()
    assert set(old) == set(new)
    return {name for name in old if not torch.equal(old[name], new[name])}
