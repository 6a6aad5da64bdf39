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

from models.checkpoints.keys import SCHEDULE_KEYS, TEXT, released_names
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


def meta_tensors(config: ModelConfig) -> Tensors:
    """Every tensor of the networks, without numbers."""
    with torch.device("meta"):
        return dict(Networks(config, first_stage="whole").state_dict())


def ours(config: ModelConfig = SMALL, seed: int = 0) -> Tensors:
    """Random tensors of the networks, with the first stage's encoder equal to the autoencoder's."""
    shapes = meta_tensors(config)
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
    diffusion, wrapped = to_released(ours(config, seed), config)
    diffusion |= {name: torch.zeros(1) for name in idle_names(config)}
    diffusion |= {name: torch.zeros(1000) for name in SCHEDULE_KEYS}
    return diffusion, wrapped


def to_released(tensors: Tensors, config: ModelConfig) -> tuple[Tensors, Tensors]:
    """Our tensors in the layout of the diffusion file, and of the autoencoder's."""
    sharers: dict[str, list[str]] = {}
    for name, (original,) in released_names(tensors, config).items():
        sharers.setdefault(original, []).append(name)
    files: tuple[Tensors, Tensors] = {}, {}
    for original, names in sharers.items():
        network, heads = names[0].partition(".")[0], config.encoder.heads
        tensor, *more = (tensors[name] for name in names)
        if more:
            # Query, key and value of the time-aware encoder: head by head.
            parts = [part.reshape(heads, -1, *part.shape[1:]) for part in (tensor, *more)]
            tensor = torch.stack(parts, dim=1).flatten(0, 2)
        # Projections of its attention are 1-d convolutions, those of the autoencoders 2-d ones.
        layer = original.split(".")[-2]
        if layer in ("q", "k", "v", "qkv", "proj_out") and tensor.ndim == 2 and network != "unet":
            tensor = tensor.reshape(*tensor.shape, *((1,) if network == "encoder" else (1, 1)))
        files[network == "autoencoder"][original] = tensor
    return files


def idle_names(config: ModelConfig) -> list[str]:
    """What a diffusion file holds and no step calls: the text tower's last block and projection."""
    if config.text is None:
        return []
    start, last = f"{TEXT}transformer.resblocks.", config.text.layers - 1
    names = (parts[0] for parts in released_names(meta_tensors(config), config).values())
    layers = [name.removeprefix(f"{start}0.") for name in names if name.startswith(f"{start}0.")]
    return [*(f"{start}{last}.{x}" for x in layers), f"{TEXT}text_projection", f"{TEXT}logit_scale"]


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
