"""Sizes of the networks, read off the names and shapes of a released-layout checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

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

_UNET, _ENCODER, _TEXT = (
    "model.diffusion_model.",
    "structcond_stage_model.",
    "cond_stage_model.model.",
)


def config_of(
    diffusion: Shapes, autoencoder: Shapes, prediction: Prediction = "epsilon"
) -> ModelConfig:
    """The configuration that a diffusion file and an autoencoder file belong to.

    What shapes do not tell (heads, groups, scaling factor, prediction) is as released.

    Raises:
        CheckpointMismatch: a tensor that every StableSR checkpoint has is not there, or has too
            few dimensions; most often the two files are swapped.
    """
    for shapes, key, what in (
        (diffusion, f"{_UNET}input_blocks.0.0.weight", "diffusion"),
        (diffusion, f"{_ENCODER}input_blocks.0.0.weight", "diffusion"),
        (autoencoder, "decoder.fusion_layer_1.encode_enc_1.conv1.weight", "autoencoder"),
    ):
        if key not in shapes:
            raise CheckpointMismatch(
                f"This is not a StableSR {what} file: it has no tensor {key}. Are the diffusion "
                "file and the autoencoder (CFW) file swapped?"
            )
    text, position = None, f"{_TEXT}positional_embedding"
    if position in diffusion:
        blocks = count(diffusion, rf"{re.escape(_TEXT)}.*resblocks\.(\d+)")
        text = text_config(diffusion, position, f"{_TEXT}token_embedding.weight", blocks)
    return ModelConfig(
        unet=_unet(diffusion),
        encoder=encoder_config(diffusion),
        autoencoder=autoencoder_config(autoencoder),
        text=text,
        prediction=prediction,
        context_tokens=77 if text is None else text.tokens,
    )


def size(shapes: Shapes, name: str, axis: int = 0) -> int:
    """One side of a tensor.

    Raises:
        CheckpointMismatch: there is no such tensor, or it has fewer dimensions.
    """
    if name not in shapes:
        raise CheckpointMismatch(f"missing {name}")
    if len(shapes[name]) <= axis:
        raise CheckpointMismatch(f"{name} has shape {tuple(shapes[name])}: a dimension is missing")
    return shapes[name][axis]


def count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers the first group of a pattern matches in the names."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def text_config(shapes: Shapes, position: str, token: str, blocks: int) -> TextConfig:
    """Sizes of a text tower, from the names of its two embeddings. Raises CheckpointMismatch."""
    width = size(shapes, position, 1)
    return TextConfig(
        width=width,
        layers=blocks,
        # 64 channels a head as in ViT-H; narrower towers are test networks of 4 heads.
        heads=width // 64 if width >= 256 else 4,
        tokens=size(shapes, position),
        vocabulary=size(shapes, token),
    )


def _levels(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """What the UNet and the time-aware encoder share: channels, widths and attention of each level
    of the encoder half, and residual blocks a level."""
    first, inputs = (size(shapes, f"{prefix}input_blocks.0.0.weight", axis) for axis in (0, 1))
    levels, blocks = [(first, False)], 0
    for number in range(1, count(shapes, rf"{re.escape(prefix)}input_blocks\.(\d+)\.")):
        at = f"{prefix}input_blocks.{number}"
        if f"{at}.0.op.weight" in shapes:
            levels.append(levels[-1])
            continue
        blocks += 1
        width = size(shapes, f"{at}.0.out_layers.3.weight")
        levels[-1] = width, f"{at}.1.norm.weight" in shapes
    widths, attention = zip(*levels, strict=True)
    layers = blocks // len(levels)
    return {"in_channels": inputs, "widths": widths, "attention": attention, "layers": layers}


def _unet(shapes: Shapes) -> UNetConfig:
    levels, hidden = _levels(shapes, _UNET), f"{_UNET}input_blocks.1.0.spade.mlp_shared.0.weight"
    key = f"{_UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    return UNetConfig(
        **levels,
        out_channels=size(shapes, f"{_UNET}out.2.weight"),
        # 64 as in SD 2.1; networks too narrow for that are test networks with heads of 16.
        head_channels=64 if size(shapes, f"{_UNET}input_blocks.0.0.weight") % 64 == 0 else 16,
        context_width=size(shapes, key, 1),
        feature_width=size(shapes, hidden, 1),
        modulation_width=size(shapes, hidden),
    )


def encoder_config(shapes: Shapes) -> EncoderConfig:
    """Sizes of the time-aware encoder. Raises CheckpointMismatch."""
    feature_width = size(shapes, f"{_ENCODER}fea_tran.0.out_layers.3.weight")
    return EncoderConfig(**_levels(shapes, _ENCODER), feature_width=feature_width)


def autoencoder_config(shapes: Shapes) -> AutoencoderConfig:
    """Sizes of the autoencoder with CFW. Raises CheckpointMismatch."""
    fusion = "decoder.fusion_layer_1.encode_enc_2."
    levels = count(shapes, r"encoder\.down\.(\d+)\.")
    return AutoencoderConfig(
        widths=tuple(
            size(shapes, f"encoder.down.{level}.block.0.conv1.weight") for level in range(levels)
        ),
        layers=count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=size(shapes, "post_quant_conv.weight"),
        growth=size(shapes, f"{fusion}0.rdb1.conv1.weight"),
        fusion_blocks=count(shapes, rf"{re.escape(fusion)}(\d+)\."),
    )
