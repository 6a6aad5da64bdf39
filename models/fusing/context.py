"""Keys and values of the empty prompt, which nearly every image has, as constants."""

from __future__ import annotations

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from models.fusing.weights import constant, wide
from models.networks.bundle import Networks

__all__ = ["CrossAttention", "fuse_context"]


class CrossAttention(nn.Module):
    """Cross-attention that knows the keys and values of one context.

    Args:
        attention: the layers; they are taken over.
        context: (1, tokens, width), the constant.
    """

    def __init__(self, attention: Attention, context: Tensor) -> None:
        super().__init__()
        self.heads = attention.heads
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out
        self.keys = self._constant(self.to_k, context)
        self.values = self._constant(self.to_v, context)
        """Like the keys (1, heads, tokens, channels of a head)."""

    def _constant(self, layer: nn.Linear, context: Tensor) -> nn.Parameter:
        bias = None if layer.bias is None else wide(layer.bias)
        return constant(self._heads(F.linear(context, wide(layer.weight), bias)), layer.weight)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """As diffusers' `Attention`, whose names these are; no context is the constant one."""
        queries = self._heads(self.to_q(hidden_states))
        if encoder_hidden_states is None:
            n = len(hidden_states)
            keys, values = self.keys.expand(n, -1, -1, -1), self.values.expand(n, -1, -1, -1)
        else:
            keys = self._heads(self.to_k(encoder_hidden_states))
            values = self._heads(self.to_v(encoder_hidden_states))
        seen = F.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.to_out[0](seen.transpose(1, 2).flatten(2))
        return out


@torch.inference_mode(False)
@torch.no_grad()
def fuse_context(networks: Networks) -> None:
    """Every cross-attention of the UNet. The layers of keys and values stay, for prompts."""
    context = wide(networks.context)
    for block in networks.unet.modules():
        if isinstance(block, BasicTransformerBlock) and isinstance(block.attn2, Attention):
            block.register_module("attn2", CrossAttention(block.attn2, context))
    networks.unet.knows_context = True
