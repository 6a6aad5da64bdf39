"""An autoencoder that starts out passing mean colours through.

A small autoencoder from a random start, with a plain L1 loss, had learned no hue after 1900
steps; our guess is that the decoder learns to ignore what no latent carries yet. So the first
three channels of every level start as a linear path: the mean colour of a cell of pixels goes to
the last three latent channels and from there back to the pixels of the cell. All of it is
learned on from there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.networks.autoencoder import Autoencoder

__all__ = ["ANCHOR_SCALE", "open_color_path"]

ANCHOR_SCALE = 2.0
"""Mean colours in [-1, 1] times this are the last three channels of the unscaled latent."""

_COLORS = 3
# Log-variance of the posterior at the start: little noise, or the decoder would wait for it.
_LOG_VARIANCE = -5.0


def _pass(convolution: Any, *, to: int = 0, of: int = 0, gain: float = 1.0) -> None:
    """Channels `of`, `of + 1`, `of + 2` go to `to`, `to + 1`, `to + 2`, pixel by pixel."""
    weight: Tensor = convolution.weight
    weight[to : to + _COLORS] = 0
    convolution.bias[to : to + _COLORS] = 0
    for i in range(_COLORS):
        if weight.ndim == 4:
            weight[to + i, of + i, weight.shape[2] // 2, weight.shape[3] // 2] = gain
        else:
            weight[to + i, of + i] = gain


def _silence(layer: Any) -> None:
    """A residual branch adds nothing to the colours."""
    layer.weight[:_COLORS] = 0
    layer.bias[:_COLORS] = 0


def _residual(block: Any) -> None:
    _silence(block.conv2)
    if block.conv_shortcut is not None:
        _pass(block.conv_shortcut)


def _middle(block: Any) -> None:
    for resnet in block.resnets:
        _residual(resnet)
    _silence(block.attentions[0].to_out[0])


@torch.no_grad()
def open_color_path(autoencoder: Autoencoder) -> None:
    """Sets the weights of the path in place; the others keep their random start."""
    latent = autoencoder.config.latent_channels
    at = latent - _COLORS
    encoder: Any = autoencoder.encoder
    decoder: Any = autoencoder.decoder
    _pass(encoder.conv_in)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            _residual(resnet)
        if block.downsamplers is not None:
            convolution = block.downsamplers[0].conv
            _silence(convolution)
            for i in range(_COLORS):
                # Padded right and below: these are the four pixels of one cell.
                convolution.weight[i, i, :2, :2] = 0.25
    _middle(encoder.mid_block)
    _pass(encoder.conv_out, to=at, gain=ANCHOR_SCALE)
    _pass(autoencoder.quant_conv, to=at, of=at)
    bias = autoencoder.quant_conv.bias
    assert bias is not None
    bias[latent:] = _LOG_VARIANCE

    _pass(autoencoder.post_quant_conv, to=at, of=at)
    _pass(decoder.conv_in, of=at)
    _middle(decoder.mid_block)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            _residual(resnet)
        if block.upsamplers is not None:
            _pass(block.upsamplers[0].conv)
    _pass(decoder.conv_out, gain=0.5)
