"""A run so small that a stage takes seconds: narrow networks, photographs of noise and squares."""

from __future__ import annotations

import json
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


def quiet(line: str) -> None:
    """Hears the progress of a run and shows nothing."""


def loop(steps: int, **changes: Any) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch": 2,
        "learning_rate": 1e-3,
        "log_every": 1,
        "save_every": 6,
        **changes,
    }


# Tables of a configuration.
VAE: dict[str, Any] = {"crop": 32, "teacher_share": 0.5, "loop": loop(6, save_every=4)}
ENCODER: dict[str, Any] = {"crop": 64, "cached": 2, "loop": loop(6, save_every=3)}
DISTILL: dict[str, Any] = {"crop": 64, "steps": [1, 2], "loss": {}, "loop": loop(6, save_every=4)}
TEACHER: dict[str, Any] = {"network": "nowhere", "crop": 64, "batch": 2, "batches": 2}
CFW: dict[str, Any] = {
    "crop": 64,
    "sampled": 2,
    "sampled_batch": 2,
    "sampling_steps": 2,
    "crop_cells": 5,
    "loss": {"perceptual": 0.1, "adversarial": 0.1, "adversarial_after": 3},
    "loop": loop(6, save_every=4),
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


def changed_names(before: Path, after: Path) -> set[str]:
    """Tensors that are not bit for bit the same."""
    old = load_folder(before, CPU, torch.float32).state_dict()
    new = load_folder(after, CPU, torch.float32).state_dict()
    assert set(old) == set(new)
    return {name for name in old if not torch.equal(old[name], new[name])}


def losses(folder: Path) -> dict[int, float]:
    """By step, from a stage's log."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    result = {line["step"]: line["loss"] for line in map(json.loads, lines)}
    assert len(result) == len(lines), "a step was logged twice"
    return result
