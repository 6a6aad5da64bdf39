"""The arithmetic of one image, counted before it is done. A product and a sum are two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.config import EncoderConfig, ModelConfig, UNetConfig
from models.networks.encoder import TimeAwareEncoder
from models.networks.unet import ModulatedUNet
from models.pieces import flops as autoencoder_flops
from models.plan import Plan

__all__ = ["Flops", "image_flops", "tile_flops"]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of each stage."""

    encode: int
    step: int
    """Of all tiles, once"""
    steps: int
    decode: int

    @property
    def total(self) -> int:
        return self.encode + self.step * self.steps + self.decode


def image_flops(config: ModelConfig, plan: Plan, steps: int, *, fusion: bool) -> Flops:
    """Of an image that goes this way in so many steps.

    `fusion`: whether the fidelity weight is above 0, without which half the decoder is left out.
    Encodings of a first stage of its own are not counted.
    """
    sides = plan.layout.padded
    grid = plan.layout.grid
    tile = tile_flops(
        config.unet, config.encoder, config.context_tokens, grid.tile_height, grid.tile_width
    )
    return Flops(
        autoencoder_flops(config.autoencoder, *sides, plan.pieces, decode=False, fusion=fusion),
        plan.tiles * tile,
        steps,
        autoencoder_flops(config.autoencoder, *sides, plan.pieces, decode=True, fusion=fusion),
    )


@lru_cache
def tile_flops(
    unet: UNetConfig, encoder: EncoderConfig, tokens: int, height: int, width: int
) -> int:
    """Of one tile of these sides (cells) in one step: counted on networks without weights."""
    with torch.device("meta"), torch.inference_mode():
        t = torch.empty(1)
        counter = FlopCounterMode(display=False)
        networks = ModulatedUNet(unet), TimeAwareEncoder(encoder)
        noisy = torch.empty(1, unet.in_channels, height, width)
        lr = torch.empty(1, encoder.in_channels, height, width)
        context = torch.empty(1, tokens, unet.context_width)
        with counter:
            networks[0](noisy, t, context, networks[1](lr, t))
    return int(counter.get_total_flops())
