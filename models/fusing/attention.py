"""Queries, keys and values of self-attention from one product."""

from __future__ import annotations

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from models.fusing.weights import constant, wide
from models.networks.bundle import Networks

__all__ = ["SelfAttention", "fuse_attention"]


class SelfAttention(nn.Module):
    """Self-attention over tokens, or over the cells of a map, normalised and with a skip.

    Args:
        attention: the layers; they are taken over.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        layers: list[nn.Linear] = [attention.to_q, attention.to_k, attention.to_v]
        first = layers[0]
        self.heads = attention.heads
        self.weight = constant(torch.cat([wide(x.weight) for x in layers]), first.weight)
        """(3 * channels, channels)"""
        self.bias = (
            None
            if first.bias is None
            else constant(torch.cat([wide(x.bias) for x in layers]), first.weight)
        )
        self.group_norm = attention.group_norm
        self.to_out = attention.to_out
        self.residual = attention.residual_connection

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """As diffusers' `Attention`, whose names these are: (n, tokens, channels), or
        (n, channels, h, w)."""
        if hidden_states.ndim == 3:
            return self._attended(hidden_states)
        n, channels, height, width = hidden_states.shape
        x = hidden_states if self.group_norm is None else self.group_norm(hidden_states)
        out = self._attended(x.permute(0, 2, 3, 1).reshape(n, height * width, channels))
        out = out.view(n, height, width, channels).permute(0, 3, 1, 2)
        return out + hidden_states if self.residual else out

    def _attended(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        qkv = F.linear(x, self.weight, self.bias).view(n, tokens, 3, self.heads, -1)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.to_out[0](seen.transpose(1, 2).flatten(2))
        return out


@torch.inference_mode(False)
@torch.no_grad()
def fuse_attention(networks: Networks) -> None:
    """Self-attention of the UNet and of the time-aware encoder.

    The autoencoder's stays: there it is cut into chunks of queries (`models.strips.attention`).
    """
    for block in networks.unet.modules():
        if isinstance(block, BasicTransformerBlock) and isinstance(block.attn1, Attention):
            block.register_module("attn1", SelfAttention(block.attn1))
    for owner in list(networks.encoder.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, Attention):
                owner.register_module(name, SelfAttention(child))
