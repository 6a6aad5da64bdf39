"""The layers of Stable Diffusion's networks (arXiv 2112.10752).

Names of parameters are those of diffusers, so that a diffusers folder maps by name. Some layers
have a second form, in which `models.fusing` computes beforehand what does not depend on the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TimestepEmbedding(nn.Module):
    """Sinusoids of a timestep and two linear layers (arXiv 1706.03762, section 3.5)."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out_width)
        self.linear_2 = nn.Linear(out_width, out_width)

    def sinusoids(self, timestep: Tensor) -> Tensor:
        """(n,) -> (n, width), float32: the cosines, then the sines."""
        half = self.linear_1.in_features // 2
        exponent = -math.log(10_000) * torch.arange(half, device=timestep.device).float() / half
        phases = timestep[:, None].float() * exponent.exp()
        return torch.cat([phases.cos(), phases.sin()], dim=1)

    def forward(self, timestep: Tensor) -> Tensor:
        """(n,) -> (n, out_width), after the SiLU that every residual block would begin with."""
        x = self.sinusoids(timestep).to(self.linear_1.weight.dtype)
        return F.silu(self.linear_2(F.silu(self.linear_1(x))))


class ResnetBlock(nn.Module):
    """Norm, SiLU and a 3x3 convolution, twice, with a skip and a timestep's shift between.

    Args:
        in_channels, out_channels: of the map.
        groups, eps: of the normalisation.
        embedding_width: of the timestep's embedding; None takes none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        embedding_width: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if embedding_width is not None:
            self.time_emb_proj = nn.Linear(embedding_width, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """x (n, in_channels, h, w), temb (n, embedding_width) -> (n, out_channels, h, w)."""
        return self.skip(x) + self.residual(x, temb)

    def residual(self, x: Tensor, temb: Tensor | None) -> Tensor:
        """What is added to the skip."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        if temb is not None:
            hidden = hidden + self.time_emb_proj(temb)[:, :, None, None]
        out: Tensor = self.conv2(F.silu(self.norm2(hidden)))
        return out

    def skip(self, x: Tensor) -> Tensor:
        """x with the result's channels."""
        return x if self.conv_shortcut is None else self.conv_shortcut(x)


class Attention(nn.Module):
    """Of tokens among themselves, or to those of a context.

    Args:
        width: channels of a token.
        head_channels: of a head; `width` is a multiple.
        context_width: channels of a token of the context, if there is one.
        bias: whether queries, keys and values have one.
    """

    def __init__(
        self, width: int, head_channels: int, *, context_width: int | None = None, bias: bool
    ) -> None:
        super().__init__()
        self.head_channels, self.is_cross = head_channels, context_width is not None
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_width or width, width, bias=bias)
        self.to_v = nn.Linear(context_width or width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

        # What `models.fusing` puts in the place of layers.
        self.to_qkv: nn.Linear | None = None
        """Queries, keys and values of self-attention, from one product."""
        self.context: nn.Parameter | None = None
        """Keys and values of the empty prompt, (2, 1, heads, tokens, head_channels)."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (n, tokens, width), context (n, m, context_width) -> like x."""
        if self.to_qkv is not None:
            n, tokens, _ = x.shape
            qkv = self.to_qkv(x).view(n, tokens, 3, -1, self.head_channels)
            queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        else:
            queries = self.heads(self.to_q(x))
            if context is None and self.context is not None:
                keys, values = self.context.expand(-1, len(x), -1, -1, -1)
            else:
                context = x if context is None else context
                keys, values = self.heads(self.to_k(context)), self.heads(self.to_v(context))
        mixture = F.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.to_out[0](mixture.transpose(1, 2).flatten(2))
        return out

    def heads(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> (n, heads, tokens, head_channels)"""
        return x.view(*x.shape[:2], -1, self.head_channels).transpose(1, 2)


class PixelAttention(Attention):
    """Attention of a map's pixels, normalised and with a skip."""

    def __init__(self, width: int, head_channels: int, *, groups: int, eps: float) -> None:
        super().__init__(width, head_channels, bias=True)
        self.group_norm = nn.GroupNorm(groups, width, eps=eps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (n, width, h, w) -> like x."""
        return to_map(super().forward(to_tokens(self.group_norm(x)), context), x) + x


def to_tokens(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h * w, c)"""
    n, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, height * width, channels)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """Inverse of `to_tokens`, of a map of the same size."""
    n, channels, height, width = like.shape
    return tokens.view(n, height, width, channels).permute(0, 3, 1, 2)


class _GatedLinear(nn.Module):
    """GEGLU (arXiv 2002.05202)."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * out_width)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = hidden * F.gelu(gate)
        return out


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # Number 1 is a dropout where the names are from.
        layers = [_GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, head_channels: int, context_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, head_channels, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, head_channels, context_width=context_width, bias=False)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        out: Tensor = self.ff(self.norm3(x)) + x
        return out


class Transformer(nn.Module):
    """A map's pixels through self-attention, cross-attention and a gated layer, with a skip."""

    def __init__(self, width: int, head_channels: int, context_width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        block = _TransformerBlock(width, head_channels, context_width)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """x (n, width, h, w), context (n, tokens, context_width) -> like x; None where the
        cross-attention holds the empty prompt's keys and values."""
        tokens = self.proj_in(to_tokens(self.norm(x)))
        tokens = self.proj_out(self.transformer_blocks[0](tokens, context))
        return to_map(tokens, x).contiguous() + x


class Downsample(nn.Module):
    """Half the size by a 3x3 convolution of stride 2.

    Args:
        width: channels.
        symmetric: zeros stand on all sides; else right and below only, as in autoencoders.
    """

    def __init__(self, width: int, *, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=int(symmetric))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, 2h, 2w) -> (n, width, h, w)."""
        out: Tensor = self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Twice the size: nearest neighbours and a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) -> (n, width, 2h, 2w)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
