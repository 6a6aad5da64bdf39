"""Names of the released tensors, how ours are made of the tensors of a file, and the sizes of the
networks that their names and shapes tell.

The released files use the naming of the CompVis latent diffusion code; ours follow diffusers.
The names are generated from those of the networks, so that a checkpoint can be checked for
completeness before a byte of it is converted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.containers import Checkpoint, LazyTensor
from models.checkpoints.folder import check_names
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

SCHEDULE_KEYS = frozenset(
    [
        *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
        *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
        *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
        *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    ]
)
"""Tables of the 1000-step schedule that the diffusion file stores beside the weights: derived."""

UNET, ENCODER, TEXT = "model.diffusion_model.", "structcond_stage_model.", "cond_stage_model.model."
_PREFIXES = {"unet": UNET, "encoder": ENCODER, "first_stage": "first_stage_model.", "text": TEXT}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "modulation.norm": "spade.param_free_norm",
    "modulation.shared": "spade.mlp_shared.0",
    "modulation.gamma": "spade.mlp_gamma",
    "modulation.beta": "spade.mlp_beta",
}
_PROJECTIONS = {"to_q": "q", "to_k": "k", "to_v": "v"}
_VAE_ATTENTION = {"group_norm": "norm", **_PROJECTIONS, "to_out.0": "proj_out"}
_ENCODER_ATTENTION = {**_VAE_ATTENTION, **dict.fromkeys(_PROJECTIONS, "qkv")}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_TEXT_BLOCK = {
    "qkv.weight": "attn.in_proj_weight",
    "qkv.bias": "attn.in_proj_bias",
    "out": "attn.out_proj",
    "fc": "mlp.c_fc",
    "proj": "mlp.c_proj",
}


def _unet_name(parts: Sequence[str], config: UNetConfig | EncoderConfig) -> str:
    """A layer of the UNet or of the time-aware encoder."""
    per_level = config.layers + 1
    attention: Mapping[str, str] = {} if isinstance(config, UNetConfig) else _ENCODER_ATTENTION
    names = {"resnets": _RESNET, "attentions": attention}
    match parts:
        case ["down_blocks" | "levels", level, "resnets" | "attentions" as kind, i, *layer]:
            block = f"input_blocks.{1 + int(level) * per_level + int(i)}.{int(kind != 'resnets')}"
            return f"{block}.{_layer(layer, names[kind])}"
        case ["down_blocks" | "levels", level, "downsamplers" | "downsampler", *_]:
            return f"input_blocks.{(int(level) + 1) * per_level}.0.op"
        case ["mid_block" | "middle", "resnets", i, *layer]:
            return f"middle_block.{2 * int(i)}.{_layer(layer, _RESNET)}"
        case ["mid_block", "attentions", "0", *layer] | ["middle", "attention", *layer]:
            return f"middle_block.1.{_layer(layer, attention)}"
        case ["up_blocks", up, "resnets" | "attentions" as kind, i, *layer]:
            block = f"output_blocks.{int(up) * per_level + int(i)}.{int(kind != 'resnets')}"
            return f"{block}.{_layer(layer, names[kind])}"
        case ["up_blocks", up, "upsamplers", *_]:
            after = 2 if config.attention[-1 - int(up)] else 1
            return f"output_blocks.{int(up) * per_level + config.layers}.{after}.conv"
        case ["taps", level, *layer]:
            return f"fea_tran.{level}.{_layer(layer, _RESNET)}"
    return _UNET_ENDS[".".join(parts)]


def _vae_name(parts: Sequence[str], config: AutoencoderConfig) -> str:
    """A layer of an autoencoder, with or without CFW."""
    last = len(config.widths) - 1
    shortcut = {"conv_shortcut": "nin_shortcut"}
    match parts:
        case [half, "mid_block", "resnets", i, layer]:
            return f"{half}.mid.block_{int(i) + 1}.{layer}"
        case [half, "mid_block", "attentions", "0", *layer]:
            return f"{half}.mid.attn_1.{_layer(layer, _VAE_ATTENTION)}"
        case ["encoder", "down_blocks", level, "resnets", i, layer]:
            return f"encoder.down.{level}.block.{i}.{shortcut.get(layer, layer)}"
        case ["encoder", "down_blocks", level, "downsamplers", *_]:
            return f"encoder.down.{level}.downsample.conv"
        # The released decoder counts its levels from the image, diffusers from the latent.
        case ["decoder", "up_blocks", up, "resnets", i, layer]:
            return f"decoder.up.{last - int(up)}.block.{i}.{shortcut.get(layer, layer)}"
        case ["decoder", "up_blocks", up, "upsamplers", *_]:
            return f"decoder.up.{last - int(up)}.upsample.conv"
        case ["decoder", "fusion", scale, *rest]:
            at = f"decoder.fusion_layer_{1 if scale == 'half_size' else 2}.encode_enc_"
            match rest:
                case ["dense", block, "blocks", dense, "convs", conv]:
                    return f"{at}2.{block}.rdb{int(dense) + 1}.conv{int(conv) + 1}"
                case ["enter", layer]:
                    return f"{at}1.{layer.replace('conv_shortcut', 'conv_out')}"
            return f"{at}3.{rest[-1]}"
    return ".".join(parts).replace("conv_norm_out", "norm_out")


def _layer(parts: Sequence[str], names: Mapping[str, str]) -> str:
    layer = ".".join(parts)
    return names.get(layer, layer)


def _released_name(name: str, config: ModelConfig) -> str:
    network, *parts, leaf = name.split(".")
    prefix = _PREFIXES.get(network, "")
    match network:
        case "unet":
            layer = _unet_name(parts, config.unet)
        case "encoder":
            layer = _unet_name(parts, config.encoder)
        case "text" if parts and parts[0] == "blocks":
            prefix += f"transformer.resblocks.{parts[1]}."
            if joint := _TEXT_BLOCK.get(f"{parts[2]}.{leaf}"):
                return prefix + joint
            layer = _TEXT_BLOCK.get(parts[2], parts[2])
        case "text":
            layer = ".".join(parts)
        case _:
            layer = _vae_name(parts, config.released_autoencoder)
    return prefix + ".".join(filter(None, (layer, leaf)))


def released_names(ours: Iterable[str], config: ModelConfig) -> dict[str, list[str]]:
    """The released tensor that holds each of ours, but for the empty prompt's embedding, which
    conversion computes. Query, key and value of the time-aware encoder lie in one."""
    return {name: [_released_name(name, config)] for name in ours if name != "context"}


def our_tensors(
    file: Checkpoint, names: Mapping[str, Sequence[str]], ours: Mapping[str, Tensor], heads: int
) -> Checkpoint:
    """The tensors of a file as ours, which must be all that it holds.

    Args:
        file: under its own names.
        names: by our names, the tensors that one of ours is made of, along the first axis. Where
            several of ours name the same one, that holds them head by head: [q | k | v].
        ours: all tensors of the networks, of which the shapes count. A 1x1 convolution of the file
            may be a linear layer here.
        heads: of such a joint projection.

    Raises:
        CheckpointMismatch: tensors are missing, left over or of the wrong shape, by name.
    """
    sharers: dict[str, list[str]] = defaultdict(list)
    for name, parts in names.items():
        for part in parts:
            sharers[part].append(name)
    reference = {}
    for part, group in sharers.items():
        first, *rest = ours[group[0]].shape
        reference[part] = (first * len(group) // len(names[group[0]]), *rest)
    shapes = {part: _cut(shape, reference.get(part, shape)) for part, shape in file.shapes.items()}
    check_names(file.path, shapes, reference, others=file.others)

    def read(name: str) -> Tensor:
        parts, group = names[name], sharers[names[name][0]]
        tensors = [file.tensors[part].read() for part in parts]
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if len(group) > 1:
            by_head = tensor.reshape(heads, len(group), -1, *tensor.shape[1:])
            tensor = by_head[:, group.index(name)]
        return tensor.reshape(ours[name].shape)

    tensors = {
        name: LazyTensor(file.tensors[parts[0]].dtype, tuple(ours[name].shape), partial(read, name))
        for name, parts in names.items()
    }
    return replace(file, tensors=tensors, others=())


def _cut(shape: tuple[int, ...], reference: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the sides of a 1x1 kernel that its reference lacks."""
    axes = len(reference)
    return shape[:axes] if set(shape[axes:]) == {1} else shape


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
    fusion = "decoder.fusion_layer_1.encode_enc_2"
    levels = range(_count(shapes, r"encoder\.down\.(\d+)\."))
    return AutoencoderConfig(
        widths=tuple(_size(shapes, f"encoder.down.{i}.block.0.conv1.weight") for i in levels),
        layers=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=_size(shapes, "post_quant_conv.weight"),
        growth=_size(shapes, f"{fusion}.0.rdb1.conv1.weight"),
        fusion_blocks=_count(shapes, rf"{re.escape(fusion)}\.(\d+)\."),
    )
