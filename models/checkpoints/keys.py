"""Names of the released tensors, and where each one goes in our networks.

The released files use the naming of the CompVis latent diffusion code; ours follow diffusers.
The table is generated from a `ModelConfig`, in both directions, so that a checkpoint can be
checked for completeness before a byte of it is converted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.config import AutoencoderConfig, EncoderConfig, ModelConfig, UNetConfig

__all__ = [
    "SCHEDULE_KEYS",
    "Entry",
    "autoencoder_entries",
    "diffusion_entries",
    "from_released",
    "to_released",
]

SCHEDULE_KEYS = frozenset(
    [
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    ]
)
"""Tables of the 1000-step schedule that the diffusion file stores beside the weights: derived."""

Kind = Literal["copy", "conv1x1", "qkv"]


@dataclass(frozen=True)
class Entry:
    """One released tensor and the tensors of ours that it holds."""

    released: str
    ours: tuple[str, ...]
    """Names prefixed by the network: unet, encoder, autoencoder, first_stage or text. Empty for
    what belongs to the released networks and is never used."""
    kind: Kind = "copy"
    """copy: as it is. conv1x1: a 1x1 convolution that is a linear layer here. qkv: one
    projection laid out head by head as [q | k | v], three linear layers here."""


def _pair(released: str, ours: str, kind: Kind = "copy") -> Iterator[Entry]:
    for leaf in ("weight", "bias"):
        # Biases of 1x1 convolutions and linear layers look the same.
        k: Kind = "copy" if kind == "conv1x1" and leaf == "bias" else kind
        yield Entry(f"{released}.{leaf}", (f"{ours}.{leaf}",), k)


def _openai_resnet(released: str, ours: str, *, skip: bool, modulated: bool) -> Iterator[Entry]:
    yield from _pair(f"{released}.in_layers.0", f"{ours}.norm1")
    yield from _pair(f"{released}.in_layers.2", f"{ours}.conv1")
    yield from _pair(f"{released}.emb_layers.1", f"{ours}.time_emb_proj")
    yield from _pair(f"{released}.out_layers.0", f"{ours}.norm2")
    yield from _pair(f"{released}.out_layers.3", f"{ours}.conv2")
    if skip:
        yield from _pair(f"{released}.skip_connection", f"{ours}.conv_shortcut")
    if modulated:
        yield from _pair(f"{released}.spade.param_free_norm", f"{ours}.modulation.norm")
        yield from _pair(f"{released}.spade.mlp_shared.0", f"{ours}.modulation.shared")
        yield from _pair(f"{released}.spade.mlp_gamma", f"{ours}.modulation.gamma")
        yield from _pair(f"{released}.spade.mlp_beta", f"{ours}.modulation.beta")


def _transformer(released: str, ours: str) -> Iterator[Entry]:
    for name in ("norm", "proj_in", "proj_out"):
        yield from _pair(f"{released}.{name}", f"{ours}.{name}")
    r, o = f"{released}.transformer_blocks.0", f"{ours}.transformer_blocks.0"
    for name in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"):
        yield from _pair(f"{r}.{name}", f"{o}.{name}")
    for attn in ("attn1", "attn2"):
        for leaf in ("to_q.weight", "to_k.weight", "to_v.weight"):
            yield Entry(f"{r}.{attn}.{leaf}", (f"{o}.{attn}.{leaf}",))
        yield from _pair(f"{r}.{attn}.to_out.0", f"{o}.{attn}.to_out.0")


def _unet(config: UNetConfig) -> Iterator[Entry]:
    r, o = "model.diffusion_model", "unet"
    yield from _pair(f"{r}.time_embed.0", f"{o}.time_embedding.linear_1")
    yield from _pair(f"{r}.time_embed.2", f"{o}.time_embedding.linear_2")
    yield from _pair(f"{r}.input_blocks.0.0", f"{o}.conv_in")
    levels = range(len(config.widths))
    block = 1
    for level in levels:
        for i in range(config.layers):
            widened = i == 0 and level > 0 and config.widths[level] != config.widths[level - 1]
            at, to = f"{r}.input_blocks.{block}", f"{o}.down_blocks.{level}"
            yield from _openai_resnet(f"{at}.0", f"{to}.resnets.{i}", skip=widened, modulated=True)
            if config.attention[level]:
                yield from _transformer(f"{at}.1", f"{to}.attentions.{i}")
            block += 1
        if level < levels[-1]:
            yield from _pair(
                f"{r}.input_blocks.{block}.0.op", f"{o}.down_blocks.{level}.downsamplers.0.conv"
            )
            block += 1
    for i, place in enumerate((0, 2)):
        yield from _openai_resnet(
            f"{r}.middle_block.{place}", f"{o}.mid_block.resnets.{i}", skip=False, modulated=True
        )
    yield from _transformer(f"{r}.middle_block.1", f"{o}.mid_block.attentions.0")
    block = 0
    for up, level in enumerate(reversed(levels)):
        for i in range(config.layers + 1):
            at, to = f"{r}.output_blocks.{block}", f"{o}.up_blocks.{up}"
            yield from _openai_resnet(f"{at}.0", f"{to}.resnets.{i}", skip=True, modulated=True)
            if config.attention[level]:
                yield from _transformer(f"{at}.1", f"{to}.attentions.{i}")
            if i == config.layers and level > 0:
                after = 2 if config.attention[level] else 1
                yield from _pair(f"{at}.{after}.conv", f"{to}.upsamplers.0.conv")
            block += 1
    yield from _pair(f"{r}.out.0", f"{o}.conv_norm_out")
    yield from _pair(f"{r}.out.2", f"{o}.conv_out")


def _qkv_attention(released: str, ours: str) -> Iterator[Entry]:
    yield from _pair(f"{released}.norm", f"{ours}.group_norm")
    for leaf in ("weight", "bias"):
        three = tuple(f"{ours}.to_{x}.{leaf}" for x in "qkv")
        yield Entry(f"{released}.qkv.{leaf}", three, "qkv")
    yield from _pair(f"{released}.proj_out", f"{ours}.to_out.0", "conv1x1")


def _encoder(config: EncoderConfig) -> Iterator[Entry]:
    r, o = "structcond_stage_model", "encoder"
    yield from _pair(f"{r}.time_embed.0", f"{o}.time_embedding.linear_1")
    yield from _pair(f"{r}.time_embed.2", f"{o}.time_embedding.linear_2")
    yield from _pair(f"{r}.input_blocks.0.0", f"{o}.conv_in")
    last = len(config.widths) - 1
    block = 1
    for level, width in enumerate(config.widths):
        for i in range(config.layers):
            widened = i == 0 and level > 0 and width != config.widths[level - 1]
            at, to = f"{r}.input_blocks.{block}", f"{o}.levels.{level}"
            yield from _openai_resnet(f"{at}.0", f"{to}.resnets.{i}", skip=widened, modulated=False)
            if config.attention[level]:
                yield from _qkv_attention(f"{at}.1", f"{to}.attentions.{i}")
            block += 1
        if level < last:
            yield from _pair(
                f"{r}.input_blocks.{block}.0.op", f"{o}.levels.{level}.downsampler.conv"
            )
            block += 1
    for i, place in enumerate((0, 2)):
        yield from _openai_resnet(
            f"{r}.middle_block.{place}", f"{o}.middle.resnets.{i}", skip=False, modulated=False
        )
    yield from _qkv_attention(f"{r}.middle_block.1", f"{o}.middle.attention")
    for level, width in enumerate(config.widths):
        yield from _openai_resnet(
            f"{r}.fea_tran.{level}",
            f"{o}.taps.{level}",
            skip=width != config.feature_width,
            modulated=False,
        )


def _vae_resnet(released: str, ours: str, skip: str | None) -> Iterator[Entry]:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield from _pair(f"{released}.{name}", f"{ours}.{name}")
    if skip is not None:
        yield from _pair(f"{released}.{skip}", f"{ours}.conv_shortcut")


def _vae_middle(released: str, ours: str) -> Iterator[Entry]:
    for i in range(2):
        yield from _vae_resnet(f"{released}.block_{i + 1}", f"{ours}.resnets.{i}", None)
    r, o = f"{released}.attn_1", f"{ours}.attentions.0"
    yield from _pair(f"{r}.norm", f"{o}.group_norm")
    for x in "qkv":
        yield from _pair(f"{r}.{x}", f"{o}.to_{x}", "conv1x1")
    yield from _pair(f"{r}.proj_out", f"{o}.to_out.0", "conv1x1")


def autoencoder_entries(
    config: AutoencoderConfig,
    *,
    fusion: bool = True,
    prefix: str = "",
    network: str = "autoencoder",
) -> Iterator[Entry]:
    """The autoencoder file (prefix "") or a diffusion file's `first_stage_model.` (no fusion)."""
    widths, last = config.widths, len(config.widths) - 1
    for half in ("encoder", "decoder"):
        r, o = f"{prefix}{half}", f"{network}.{half}"
        for name, to in (
            ("conv_in", "conv_in"),
            ("norm_out", "conv_norm_out"),
            ("conv_out", "conv_out"),
        ):
            yield from _pair(f"{r}.{name}", f"{o}.{to}")
        yield from _vae_middle(f"{r}.mid", f"{o}.mid_block")
    for level, width in enumerate(widths):
        r, o = f"{prefix}encoder.down.{level}", f"{network}.encoder.down_blocks.{level}"
        for i in range(config.layers):
            widened = i == 0 and level > 0 and width != widths[level - 1]
            skip = "nin_shortcut" if widened else None
            yield from _vae_resnet(f"{r}.block.{i}", f"{o}.resnets.{i}", skip)
        if level < last:
            yield from _pair(f"{r}.downsample.conv", f"{o}.downsamplers.0.conv")
        # The released decoder counts its levels from the image, diffusers from the latent.
        r = f"{prefix}decoder.up.{level}"
        o = f"{network}.decoder.up_blocks.{last - level}"
        for i in range(config.layers + 1):
            narrowed = i == 0 and level < last and width != widths[level + 1]
            skip = "nin_shortcut" if narrowed else None
            yield from _vae_resnet(f"{r}.block.{i}", f"{o}.resnets.{i}", skip)
        if level > 0:
            yield from _pair(f"{r}.upsample.conv", f"{o}.upsamplers.0.conv")
    yield from _pair(f"{prefix}quant_conv", f"{network}.quant_conv")
    yield from _pair(f"{prefix}post_quant_conv", f"{network}.post_quant_conv")
    if fusion:
        for number, name in ((1, "half_size"), (2, "quarter_size")):
            r = f"{prefix}decoder.fusion_layer_{number}"
            o = f"{network}.decoder.fusion.{name}"
            yield from _vae_resnet(f"{r}.encode_enc_1", f"{o}.enter", "conv_out")
            yield from _vae_resnet(f"{r}.encode_enc_3", f"{o}.leave", None)
            for b in range(config.fusion_blocks):
                for d in range(3):
                    for c in range(5):
                        yield from _pair(
                            f"{r}.encode_enc_2.{b}.rdb{d + 1}.conv{c + 1}",
                            f"{o}.dense.{b}.blocks.{d}.convs.{c}",
                        )


def _text(layers: int) -> Iterator[Entry]:
    r, o = "cond_stage_model.model", "text"
    yield Entry(f"{r}.positional_embedding", (f"{o}.positional_embedding",))
    for name in ("text_projection", "logit_scale"):
        yield Entry(f"{r}.{name}", ())
    yield Entry(f"{r}.token_embedding.weight", (f"{o}.token_embedding.weight",))
    yield from _pair(f"{r}.ln_final", f"{o}.ln_final")
    for i in range(layers):
        b, t = f"{r}.transformer.resblocks.{i}", f"{o}.blocks.{i}"
        if i == layers - 1:
            yield from (Entry(entry.released, ()) for entry in _text_block(b, t))
        else:
            yield from _text_block(b, t)


def _text_block(released: str, ours: str) -> Iterator[Entry]:
    for leaf in ("weight", "bias"):
        yield Entry(f"{released}.attn.in_proj_{leaf}", (f"{ours}.qkv.{leaf}",))
    for name, to in (
        ("ln_1", "ln_1"),
        ("ln_2", "ln_2"),
        ("attn.out_proj", "out"),
        ("mlp.c_fc", "fc"),
        ("mlp.c_proj", "proj"),
    ):
        yield from _pair(f"{released}.{name}", f"{ours}.{to}")


def diffusion_entries(config: ModelConfig) -> list[Entry]:
    """Every tensor of a released diffusion file, but for the schedule's tables."""
    entries = [*_unet(config.unet), *_encoder(config.encoder)]
    own = config.released_autoencoder
    entries += autoencoder_entries(
        own, fusion=False, prefix="first_stage_model.", network="first_stage"
    )
    if config.text is not None:
        entries += _text(config.text.layers)
    return entries


def _to_linear(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[:2])


def _split_heads(tensor: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(3 * width, ...) laid out head by head -> q, k, v of (width, ...)."""
    width, rest = tensor.shape[0] // 3, tensor.shape[1:2]
    parts = tensor.reshape(heads, 3, width // heads, *rest)
    return tuple(parts[:, i].reshape(width, *rest).contiguous() for i in range(3))


def _join_heads(parts: list[Tensor], heads: int) -> Tensor:
    width = parts[0].shape[0]
    rest = parts[0].shape[1:]
    split = [p.reshape(heads, width // heads, *rest) for p in parts]
    joined = torch.stack(split, dim=1).reshape(3 * width, *rest)
    return joined[..., None] if rest else joined


def from_released(entry: Entry, tensor: Tensor, heads: int) -> dict[str, Tensor]:
    """Tensors of ours that one released tensor holds. `heads`: of the time-aware encoder."""
    if not entry.ours:
        return {}
    if entry.kind == "qkv":
        return dict(zip(entry.ours, _split_heads(tensor, heads), strict=True))
    return {entry.ours[0]: _to_linear(tensor) if entry.kind == "conv1x1" else tensor}


def to_released(entry: Entry, ours: Mapping[str, Tensor], heads: int) -> Tensor:
    """Inverse of `from_released`, of an entry that is used."""
    tensors = [ours[name] for name in entry.ours]
    if entry.kind == "qkv":
        return _join_heads(tensors, heads)
    if entry.kind == "conv1x1":
        # The encoder's projections are 1-d convolutions, the autoencoder's 2-d ones.
        tail = (1,) if entry.released.startswith("structcond") else (1, 1)
        return tensors[0].reshape(*tensors[0].shape, *tail)
    return tensors[0]
