"""Sizes of the networks, read off the names and shapes of a released-layout checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from models.checkpoints.keys import ENCODER, TEXT, UNET
from models.config import (
    AutoencoderConfig,
    EncoderConfig,
    ModelConfig,
    Prediction,
    TextConfig,
    UNetConfig,
)
from models.errors import CheckpointMismatch

Shapes = Mapping[str, Sequence[int]]


def config_of(
    diffusion: Shapes,
    autoencoder: Shapes,
    prediction: Prediction = "epsilon",
    unet: UNetConfig | None = None,
    text: TextConfig | None = None,
) -> ModelConfig:
    """The sizes of a diffusion file's and an autoencoder file's networks.

    What shapes do not tell (heads, groups, scaling factor, prediction) is as released. `unet` and
    `text` are those of a base whose tensors are not in `diffusion`.

    Raises:
        CheckpointMismatch: a tensor is not there, or has too few dimensions.
    """
    modulation = f"{UNET}input_blocks.1.0.spade.mlp_shared.0.weight"
    unet = replace(
        unet or _unet(diffusion),
        feature_width=_size(diffusion, modulation, 1),
        modulation_width=_size(diffusion, modulation),
    )
    text = text or _text(diffusion)
    tokens = 77 if text is None else text.tokens
    encoder = EncoderConfig(
        **_levels(diffusion, ENCODER),
        feature_width=_size(diffusion, f"{ENCODER}fea_tran.0.out_layers.3.weight"),
    )
    return ModelConfig(
        unet, encoder, _autoencoder(autoencoder), text, prediction, context_tokens=tokens
    )


def _size(shapes: Shapes, name: str, axis: int = 0) -> int:
    """One side of a tensor."""
    if name not in shapes:
        raise CheckpointMismatch(f"missing {name}")
    if len(shapes[name]) <= axis:
        raise CheckpointMismatch(f"{name} has shape {tuple(shapes[name])}: a dimension is missing")
    return shapes[name][axis]


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers the first group of a pattern matches in the names."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _levels(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """What the UNet and the time-aware encoder share: channels, widths and attention of each level
    of the encoder half, and residual blocks a level."""
    first, inputs = (_size(shapes, f"{prefix}input_blocks.0.0.weight", axis) for axis in (0, 1))
    levels, blocks = [(first, False)], 0
    for number in range(1, _count(shapes, rf"{re.escape(prefix)}input_blocks\.(\d+)\.")):
        at = f"{prefix}input_blocks.{number}"
        if f"{at}.0.op.weight" in shapes:
            levels.append(levels[-1])
            continue
        blocks += 1
        width = _size(shapes, f"{at}.0.out_layers.3.weight")
        levels[-1] = width, f"{at}.1.norm.weight" in shapes
    widths, attention = zip(*levels, strict=True)
    layers = blocks // len(levels)
    return {"in_channels": inputs, "widths": widths, "attention": attention, "layers": layers}


def _unet(shapes: Shapes) -> UNetConfig:
    levels = _levels(shapes, UNET)
    key = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    return UNetConfig(
        **levels,
        out_channels=_size(shapes, f"{UNET}out.2.weight"),
        # 64 as in SD 2.1; networks too narrow for that are test networks with heads of 16.
        head_channels=64 if levels["widths"][0] % 64 == 0 else 16,
        context_width=_size(shapes, key, 1),
    )


def _text(shapes: Shapes) -> TextConfig | None:
    position = f"{TEXT}positional_embedding"
    if position not in shapes:
        return None
    width = _size(shapes, position, 1)
    return TextConfig(
        width=width,
        layers=_count(shapes, rf"{re.escape(TEXT)}.*resblocks\.(\d+)"),
        # 64 channels a head as in ViT-H; narrower towers are test networks of 4 heads.
        heads=width // 64 if width >= 256 else 4,
        tokens=_size(shapes, position),
        vocabulary=_size(shapes, f"{TEXT}token_embedding.weight"),
    )


def _autoencoder(shapes: Shapes) -> AutoencoderConfig:
    levels, fusion = (
        _count(shapes, r"encoder\.down\.(\d+)\."),
        "decoder.fusion_layer_1.encode_enc_2",
    )
    return AutoencoderConfig(
        widths=tuple(
            _size(shapes, f"encoder.down.{i}.block.0.conv1.weight") for i in range(levels)
        ),
        layers=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=_size(shapes, "post_quant_conv.weight"),
        growth=_size(shapes, f"{fusion}.0.rdb1.conv1.weight"),
        fusion_blocks=_count(shapes, rf"{re.escape(fusion)}\.(\d+)\."),
    )
