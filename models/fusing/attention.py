"""Attention with less to compute: queries, keys and values of self-attention from one product, and
keys and values of the empty prompt, which nearly every image has, as constants."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.fusing.layers import constant, wide
from models.networks.bundle import Networks
from models.networks.layers import Attention


def fuse_attention(networks: Networks) -> None:
    """Self-attention of the UNet and of the time-aware encoder.

    The autoencoder's stays: there it is cut into chunks of queries (`models.strips.attention`).
    """
    for part in (networks.unet, networks.encoder):
        for attention in part.modules():
            if isinstance(attention, Attention) and not attention.is_cross:
                _join(attention)


def _join(attention: Attention) -> None:
    layers: list[nn.Linear] = [attention.to_q, attention.to_k, attention.to_v]
    like = layers[0].weight
    weight = constant(torch.cat([wide(layer.weight) for layer in layers]), like)
    bias = layers[0].bias is not None
    joint = nn.Linear(like.shape[1], len(weight), bias=bias, device="meta")
    joint.weight = weight
    if bias:
        joint.bias = constant(torch.cat([wide(layer.bias) for layer in layers]), like)
    attention.to_qkv = joint
    del attention.to_q, attention.to_k, attention.to_v


def fuse_context(networks: Networks) -> None:
    """Every cross-attention of the UNet; layers of keys and values stay, for prompts."""
    context = wide(networks.context)
    for attention in networks.unet.modules():
        if isinstance(attention, Attention) and attention.is_cross:
            layers = attention.to_k, attention.to_v
            heads = [attention.heads(_linear(context, layer)) for layer in layers]
            attention.context = constant(torch.stack(heads), attention.to_k.weight)
    networks.unet.knows_context = True


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, wide(layer.weight), None if layer.bias is None else wide(layer.bias))
