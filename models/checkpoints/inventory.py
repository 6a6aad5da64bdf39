"""Sizes of the networks, read off the names and shapes of a released-layout checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from models.config import (
    AutoencoderConfig,
    EncoderConfig,
    ModelConfig,
    Prediction,
    TextConfig,
    UNetConfig,
)
from models.errors import CheckpointMismatch

__all__ = ["config_of"]

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
        CheckpointMismatch: a tensor that every StableSR checkpoint has is not there; most
            often the two files are swapped.
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
    tokens_by_width = diffusion.get(f"{_TEXT}positional_embedding")
    text = None
    if tokens_by_width is not None:
        width = tokens_by_width[1]
        blocks = {int(m[1]) for k in diffusion if (m := re.match(rf"{_TEXT}.*resblocks\.(\d+)", k))}
        text = TextConfig(
            width=width,
            layers=len(blocks),
            # 64 channels a head as in ViT-H; towers narrower than that are test networks of 4.
            heads=width // 64 if width >= 256 else 4,
            tokens=tokens_by_width[0],
            vocabulary=diffusion[f"{_TEXT}token_embedding.weight"][0],
        )
    return ModelConfig(
        unet=_unet(diffusion),
        encoder=_encoder(diffusion),
        autoencoder=_autoencoder(autoencoder),
        text=text,
        prediction=prediction,
        context_tokens=77 if text is None else text.tokens,
    )


def _levels(shapes: Shapes, prefix: str, first: int) -> tuple[tuple[int, ...], list[bool], int]:
    """Widths and attention of each level of an encoder half, and residual blocks a level."""
    widths: list[int] = []
    attention: list[bool] = []
    blocks = 0
    width = first
    attended = False
    numbers = sorted(
        {int(m[1]) for k in shapes if (m := re.match(rf"{prefix}input_blocks\.(\d+)\.", k))}
    )
    for number in numbers[1:]:
        at = f"{prefix}input_blocks.{number}"
        if f"{at}.0.op.weight" in shapes:
            widths.append(width)
            attention.append(attended)
            continue
        blocks += 1
        width = shapes[f"{at}.0.out_layers.3.weight"][0]
        attended = f"{at}.1.norm.weight" in shapes
    widths.append(width)
    attention.append(attended)
    return tuple(widths), attention, blocks // len(widths)


def _unet(shapes: Shapes) -> UNetConfig:
    first, inputs = shapes[f"{_UNET}input_blocks.0.0.weight"][:2]
    widths, attention, layers = _levels(shapes, _UNET, first)
    hidden, feature = shapes[f"{_UNET}input_blocks.1.0.spade.mlp_shared.0.weight"][:2]
    key = f"{_UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    return UNetConfig(
        in_channels=inputs,
        out_channels=shapes[f"{_UNET}out.2.weight"][0],
        widths=widths,
        layers=layers,
        attention=tuple(attention),
        # 64 as in SD 2.1; networks too narrow for that are test networks with heads of 16.
        head_channels=64 if first % 64 == 0 else 16,
        context_width=shapes[key][1],
        feature_width=feature,
        modulation_width=hidden,
    )


def _encoder(shapes: Shapes) -> EncoderConfig:
    first, inputs = shapes[f"{_ENCODER}input_blocks.0.0.weight"][:2]
    widths, attention, layers = _levels(shapes, _ENCODER, first)
    return EncoderConfig(
        in_channels=inputs,
        widths=widths,
        layers=layers,
        attention=tuple(attention),
        feature_width=shapes[f"{_ENCODER}fea_tran.0.out_layers.3.weight"][0],
    )


def _autoencoder(shapes: Shapes) -> AutoencoderConfig:
    levels = {int(m[1]) for k in shapes if (m := re.match(r"encoder\.down\.(\d+)\.", k))}
    fusion = "decoder.fusion_layer_1.encode_enc_2."
    blocks = {int(m[1]) for k in shapes if (m := re.match(rf"{fusion}(\d+)\.", k))}
    layers = {int(m[1]) for k in shapes if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", k))}
    return AutoencoderConfig(
        widths=tuple(
            shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(len(levels))
        ),
        layers=len(layers),
        latent_channels=shapes["post_quant_conv.weight"][0],
        growth=shapes[f"{fusion}0.rdb1.conv1.weight"][0],
        fusion_blocks=len(blocks),
    )
