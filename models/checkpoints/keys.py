"""Names of the released tensors, and where each one goes in our networks.

The released files use the naming of the CompVis latent diffusion code; ours follow diffusers.
The table is generated from the networks of a `ModelConfig`, in both directions, so that a
checkpoint can be checked for completeness before a byte of it is converted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from models.config import AutoencoderConfig, EncoderConfig, ModelConfig, UNetConfig
from models.networks.bundle import Networks

SCHEDULE_KEYS = frozenset(
    [
        *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
        *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
        *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
        *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    ]
)
"""Tables of the 1000-step schedule that the diffusion file stores beside the weights: derived."""

Kind = Literal["copy", "conv1x1", "qkv"]


@dataclass(frozen=True)
class Entry:
    """One released tensor, by its name there, and the tensors of ours that it holds."""

    name: str
    ours: tuple[str, ...]
    """Names prefixed by the network: unet, encoder, autoencoder, first_stage or text. Empty for
    what belongs to the released networks and is never used."""
    kind: Kind = "copy"
    """copy: as it is. conv1x1: a 1x1 convolution that is a linear layer here. qkv: one
    projection laid out head by head as [q | k | v], three linear layers here."""


_PREFIXES = {
    "unet": "model.diffusion_model.",
    "encoder": "structcond_stage_model.",
    "first_stage": "first_stage_model.",
    "autoencoder": "",
    "text": "cond_stage_model.model.",
}
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
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_ENCODER_ATTENTION = _VAE_ATTENTION | {"to_q": "qkv", "to_k": "qkv", "to_v": "qkv"}
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
    match parts:
        case ["conv_in"]:
            return "input_blocks.0.0"
        case ["time_embedding", layer]:
            return {"linear_1": "time_embed.0", "linear_2": "time_embed.2"}[layer]
        case ["down_blocks" | "levels", level, "resnets", i, *layer]:
            return f"input_blocks.{1 + int(level) * per_level + int(i)}.0.{_layer(layer, _RESNET)}"
        case ["down_blocks" | "levels", level, "attentions", i, *layer]:
            block = 1 + int(level) * per_level + int(i)
            return f"input_blocks.{block}.1.{_layer(layer, attention)}"
        case ["down_blocks" | "levels", level, "downsamplers" | "downsampler", *_]:
            return f"input_blocks.{(int(level) + 1) * per_level}.0.op"
        case ["mid_block" | "middle", "resnets", i, *layer]:
            return f"middle_block.{2 * int(i)}.{_layer(layer, _RESNET)}"
        case ["mid_block", "attentions", "0", *layer] | ["middle", "attention", *layer]:
            return f"middle_block.1.{_layer(layer, attention)}"
        case ["up_blocks", up, "resnets", i, *layer]:
            return f"output_blocks.{int(up) * per_level + int(i)}.0.{_layer(layer, _RESNET)}"
        case ["up_blocks", up, "attentions", i, *layer]:
            return f"output_blocks.{int(up) * per_level + int(i)}.1.{'.'.join(layer)}"
        case ["up_blocks", up, "upsamplers", *_]:
            after = 2 if config.attention[-1 - int(up)] else 1
            return f"output_blocks.{int(up) * per_level + config.layers}.{after}.conv"
        case ["taps", level, *layer]:
            return f"fea_tran.{level}.{_layer(layer, _RESNET)}"
        case [last]:
            return {"conv_norm_out": "out.0", "conv_out": "out.2"}[last]
    raise KeyError(".".join(parts))


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
            number = {"half_size": 1, "quarter_size": 2}[scale]
            return f"decoder.fusion_layer_{number}.{_fusion_name(rest)}"
        case _:
            return ".".join(parts).replace("conv_norm_out", "norm_out")


def _fusion_name(parts: Sequence[str]) -> str:
    match parts:
        case ["dense", block, "blocks", dense, "convs", conv]:
            return f"encode_enc_2.{block}.rdb{int(dense) + 1}.conv{int(conv) + 1}"
        case ["enter", layer]:
            return f"encode_enc_1.{layer.replace('conv_shortcut', 'conv_out')}"
        case _:
            return f"encode_enc_3.{parts[-1]}"


def _layer(parts: Sequence[str], names: Mapping[str, str]) -> str:
    layer = ".".join(parts)
    return names.get(layer, layer)


def _released_name(name: str, config: ModelConfig) -> str:
    """The released tensor that holds ours."""
    network, *parts, leaf = name.split(".")
    match network:
        case "unet":
            layer = _unet_name(parts, config.unet)
        case "encoder":
            layer = _unet_name(parts, config.encoder)
        case "text" if parts and parts[0] == "blocks":
            block = f"transformer.resblocks.{parts[1]}"
            joint = _TEXT_BLOCK.get(f"{parts[2]}.{leaf}")
            if joint:
                return f"{_PREFIXES[network]}{block}.{joint}"
            layer = f"{block}.{_TEXT_BLOCK.get(parts[2], parts[2])}"
        case "text":
            layer = ".".join(parts)
        case _:
            layer = _vae_name(parts, config.released_autoencoder)
    return f"{_PREFIXES[network]}{'.'.join(filter(None, (layer, leaf)))}"


def _kind(name: str) -> Kind:
    network, layer = name.partition(".")[0], name.rpartition(".")[0]
    if network == "encoder" and layer.endswith(("to_q", "to_k", "to_v")):
        return "qkv"
    projection = layer.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    # Biases of 1x1 convolutions and linear layers look the same.
    if projection and network not in ("unet", "text") and name.endswith(".weight"):
        return "conv1x1"
    return "copy"


@lru_cache(maxsize=2)
def _entries(config: ModelConfig) -> dict[str, Entry]:
    """Of all tensors of the networks, by the released name."""
    with torch.device("meta"):
        names = list(Networks(config, first_stage="whole").state_dict())
    entries: dict[str, Entry] = {}
    for name in names:
        if name == "context":  # the empty prompt's embedding, which conversion computes
            continue
        original = _released_name(name, config)
        ours = entries[original].ours if original in entries else ()
        entries[original] = Entry(original, (*ours, name), _kind(name))
    return entries


def autoencoder_entries(config: ModelConfig) -> list[Entry]:
    """Every tensor of a released autoencoder file, but for the loss of its training."""
    return [e for e in _entries(config).values() if e.ours[0].startswith("autoencoder.")]


def diffusion_entries(config: ModelConfig) -> list[Entry]:
    """Every tensor of a released diffusion file, but for the schedule's tables."""
    entries = [e for e in _entries(config).values() if not e.ours[0].startswith("autoencoder.")]
    if config.text is not None:
        # What no step calls: the tower's last block and its projection.
        text, last = _PREFIXES["text"], config.text.layers - 1
        block = f"{text}transformer.resblocks."
        layers = [e.name for e in entries if e.name.startswith(f"{block}0.")]
        idle = [name.replace(f"{block}0.", f"{block}{last}.") for name in layers]
        entries += [Entry(n, ()) for n in (*idle, f"{text}text_projection", f"{text}logit_scale")]
    return entries


def from_released(entry: Entry, tensor: Tensor, heads: int) -> dict[str, Tensor]:
    """Tensors of ours that one released tensor holds. `heads`: of the time-aware encoder."""
    if not entry.ours:
        return {}
    if entry.kind == "qkv":
        # (3 * width, ...) laid out head by head -> q, k, v of (width, ...).
        width, rest = tensor.shape[0] // 3, tensor.shape[1:2]
        parts = tensor.reshape(heads, 3, width // heads, *rest).unbind(1)
        split = [part.reshape(width, *rest).contiguous() for part in parts]
        return dict(zip(entry.ours, split, strict=True))
    return {entry.ours[0]: tensor.reshape(tensor.shape[:2]) if entry.kind == "conv1x1" else tensor}


def to_released(entry: Entry, ours: Mapping[str, Tensor], heads: int) -> Tensor:
    """Inverse of `from_released`, of an entry that is used."""
    tensors = [ours[name] for name in entry.ours]
    if entry.kind == "qkv":
        width, *rest = tensors[0].shape
        heads_apart = [tensor.reshape(heads, width // heads, *rest) for tensor in tensors]
        qkv = torch.stack(heads_apart, dim=1).reshape(3 * width, *rest)
        return qkv[..., None] if rest else qkv
    if entry.kind == "conv1x1":
        # The encoder's projections are 1-d convolutions, the autoencoder's 2-d ones.
        tail = (1,) if entry.name.startswith("structcond") else (1, 1)
        return tensors[0].reshape(*tensors[0].shape, *tail)
    return tensors[0]
