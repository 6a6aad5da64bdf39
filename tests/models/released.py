"""Files in the layout of the released ones, at widths that take no time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.keys import (
    SCHEDULE_KEYS,
    autoencoder_entries,
    diffusion_entries,
    to_released,
)
from models.config import AutoencoderConfig, EncoderConfig, ModelConfig, TextConfig, UNetConfig
from models.networks.bundle import Networks

Tensors = dict[str, Tensor]

# What shapes do not tell has the values that `config_of` gives: groups of 32, heads of 16.
SMALL = ModelConfig(
    unet=UNetConfig(
        widths=(32, 32, 64, 64),
        layers=1,
        head_channels=16,
        context_width=32,
        feature_width=32,
        modulation_width=8,
    ),
    encoder=EncoderConfig(widths=(32, 32, 64, 64), layers=1, feature_width=32),
    autoencoder=AutoencoderConfig(widths=(32, 32, 64, 64), layers=1, growth=8, fusion_blocks=1),
    text=TextConfig(width=32, layers=3, heads=4, tokens=77, vocabulary=50),
)


def ours(config: ModelConfig = SMALL, seed: int = 0) -> Tensors:
    """Random tensors of the networks, with the first stage's encoder equal to the autoencoder's."""
    with torch.device("meta"):
        shapes = Networks(config, first_stage="whole").state_dict()
    generator = torch.Generator().manual_seed(seed)
    tensors = {k: 0.1 * torch.randn(v.shape, generator=generator) for k, v in shapes.items()}
    for name in tensors:
        if name.startswith("first_stage."):
            tensors[name] = tensors[name.replace("first_stage.", "autoencoder.", 1)]
    return tensors


def released(config: ModelConfig = SMALL, seed: int = 0) -> tuple[Tensors, Tensors]:
    """The state dicts of a diffusion file and of an autoencoder file, to be changed at will."""
    diffusion, wrapped = _released(config, seed)
    return {k: t.clone() for k, t in diffusion.items()}, {k: t.clone() for k, t in wrapped.items()}


@lru_cache(maxsize=1)
def _released(config: ModelConfig, seed: int) -> tuple[Tensors, Tensors]:
    tensors, heads = ours(config, seed), config.encoder.heads
    diffusion, wrapped = (
        {e.name: to_released(e, tensors, heads) for e in entries if e.ours}
        for entries in (
            diffusion_entries(config),
            autoencoder_entries(config),
        )
    )
    for entry in diffusion_entries(config):
        if not entry.ours:
            diffusion[entry.name] = torch.zeros(1)
    diffusion |= {name: torch.zeros(1000) for name in SCHEDULE_KEYS}
    return diffusion, wrapped


def lightning(state_dict: Tensors) -> dict[str, Any]:
    """A Lightning checkpoint around a state dict, with what else is in one."""
    return {
        "epoch": 117,
        "global_step": 16500,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state_dict,
        "callbacks": {_callback(): {"monitor": "val/loss", "best_model_score": torch.ones(1)}},
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.ones(7)}}}],
        "lr_schedulers": [{"last_epoch": 117, "hook": _callback()}],
    }


def _callback() -> type:
    return sys.modules[_MODULE].ModelCheckpoint  # type: ignore[no-any-return]  # made below


_MODULE = "pytorch_lightning.callbacks.model_checkpoint"


@contextmanager
def pretended_lightning() -> Iterator[None]:
    """The class that the released files name, as long as they are written: it is not installed."""
    names = [_MODULE.rsplit(".", i)[0] for i in (2, 1)] + [_MODULE]
    for name in names:
        sys.modules[name] = ModuleType(name)
    checkpoint = type("ModelCheckpoint", (), {"__module__": _MODULE})
    sys.modules[_MODULE].ModelCheckpoint = checkpoint  # type: ignore[attr-defined]  # pretended
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def save(path: Path, state_dict: Tensors) -> Path:
    """Writes a Lightning checkpoint as the released ones were written, with `torch.save`."""
    with pretended_lightning():
        torch.save(lightning(state_dict), path)
    return path


def write_files(folder: Path, diffusion: Tensors, autoencoder: Tensors) -> tuple[Path, Path]:
    """Both files, with what training leaves in the autoencoder's."""
    trained = {**autoencoder, "loss.logvar": torch.zeros(1), "loss.discriminator.x": torch.ones(2)}
    return (
        save(folder / "stablesr_000117.ckpt", diffusion),
        save(folder / "vqgan_cfw_00011.ckpt", trained),
    )
