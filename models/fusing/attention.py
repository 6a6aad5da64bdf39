"""Attention with less to compute: queries, keys and values of self-attention from one product, and
keys and values of the empty prompt, which nearly every image has, as constants."""

from __future__ import annotations

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from models.fusing.layers import constant, wide
from models.networks.bundle import Networks


class SelfAttention(nn.Module):
    """Self-attention over tokens, or over the pixels of a map, normalised and with a skip.

    Args:
        attention: the layers to replace.
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
            return self._attend(hidden_states)
        n, channels, height, width = hidden_states.shape
        x = hidden_states if self.group_norm is None else self.group_norm(hidden_states)
        out = self._attend(x.permute(0, 2, 3, 1).reshape(n, height * width, channels))
        out = out.view(n, height, width, channels).permute(0, 3, 1, 2)
        return out + hidden_states if self.residual else out

    def _attend(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        qkv = F.linear(x, self.weight, self.bias).view(n, tokens, 3, self.heads, -1)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        return _attention(queries, keys, values, self.to_out)


class CrossAttention(nn.Module):
    """Cross-attention that knows the keys and values of one context.

    Args:
        attention: the layers to replace; those of keys and values stay, for prompts.
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
        return _attention(queries, keys, values, self.to_out)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, to_out: nn.ModuleList) -> Tensor:
    """Each (n, heads, tokens, channels of a head) -> (n, tokens, channels)."""
    mixture = F.scaled_dot_product_attention(queries, keys, values)
    out: Tensor = to_out[0](mixture.transpose(1, 2).flatten(2))
    return out


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


def fuse_context(networks: Networks) -> None:
    """Every cross-attention of the UNet."""
    context = wide(networks.context)
    for block in networks.unet.modules():
        if isinstance(block, BasicTransformerBlock) and isinstance(block.attn2, Attention):
            block.register_module("attn2", CrossAttention(block.attn2, context))
    networks.unet.knows_context = True
