"""How much memory and arithmetic each stage of an image takes, counted before it is computed.

`models.strips` counts the autoencoder's maps, strips and arithmetic by going through its passes.
What a tile takes in the denoiser is a formula that a test holds against a trace of the networks.
Left out are Python and the libraries themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoints.files import preset_folder
from models.checkpoints.folder import describe
from models.config import ModelConfig, UNetConfig
from models.errors import WeightsNotFound
from models.fusing import is_worthwhile, use_winograd
from models.memory import Memory, room_to_grow
from models.networks.bundle import Networks
from models.parameters import UpscaleParameters
from models.presets import Preset
from models.strips import Cost, StripConfig, coding_cost
from models.tiling import Layout

_FLOAT = torch.float32.itemsize
# Tensors of the canvas' latent that a step holds: start, LR latent, canvas, noise, the tiles' sum
# and weights, the prediction, and two that the scheduler's arithmetic makes.
_LATENTS = 9
# Numbers a latent pixel that the denoiser holds at most at one level, skips and features included.
# With a transformer, whose gated feed-forward is 16 times as wide as it: so many of the level's
# channels. Without: so many of its own and of those from the level below, joined to its skips.
_TRANSFORMER, _OWN, _BELOW = 30.0, 3.5, 6.5
# What kernels hold for themselves: 112 MB at most on an H200, 96 MB on a processor, as measured
# (`benchmarks.memory`). A processor's convolutions rearrange their weights beside.
_KERNELS = 128 * 2**20
# The share of the device's memory that all weights may take together.
_MOST_WEIGHTS = 2 / 3
# The result's rows on their way to a file.
_ROWS = 32 * 2**20


class Weights(NamedTuple):
    """Bytes of the parameters, by when they are used."""

    autoencoder: int
    denoiser: int
    """UNet and time-aware encoder"""
    text: int = 0
    """Text tower; it stays on the host where parts take turns on the device"""

    @property
    def all(self) -> int:
        return self.autoencoder + self.denoiser + self.text


class Peaks(NamedTuple):
    """Most bytes held at once in each stage, weights included."""

    load: Memory
    encode: Memory
    denoise: Memory
    decode: Memory


@dataclass(frozen=True)
class Estimate:
    """Of networks on a device. Where it computes in the host's memory, that counts as `host`."""

    config: ModelConfig
    weights: Weights
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, networks: Networks, dtype: torch.dtype, device: torch.device) -> Estimate:
        """Of networks, which may be on the meta device."""

        def size(*modules: torch.nn.Module | None) -> int:
            numbers = (p.numel() for m in modules if m is not None for p in m.parameters())
            return sum(numbers) * dtype.itemsize

        weights = Weights(
            size(networks.autoencoder, networks.first_stage),
            size(networks.unet, networks.encoder),
            size(networks.text),
        )
        return cls(networks.config, weights, dtype, device)

    @classmethod
    def of_preset(
        cls, preset: Preset, dtype: torch.dtype, device: torch.device, memory: Memory
    ) -> Estimate:
        """Of a preset as it is loaded where there is so much memory. Its weights need not be here:
        without their folder the networks are those of the released checkpoint."""
        try:
            config, _ = describe(preset_folder(preset))
        except WeightsNotFound:
            kind = preset.release.prediction if preset.release else "epsilon"
            config = ModelConfig(prediction=kind)
        with torch.device("meta"):
            networks = Networks(config)
        if is_worthwhile(device, dtype):
            weights = cls.of(networks, dtype, device).weights.all
            use_winograd(networks, room_to_grow(memory.host - weights))
        return cls.of(networks, dtype, device)

    @property
    def on_host(self) -> bool:
        """Whether the device computes in the host's memory."""
        return self.device.type != "cuda"

    def needs_offload(self, memory: Memory) -> bool:
        """Whether all networks on the device leave too little beside them, for full-size ones on a
        canvas of the native size: decided when they are loaded, so it depends on no image.

        Where the device computes in the host's memory there is nowhere to put a network aside.
        """
        return not self.on_host and self.weights.all > _MOST_WEIGHTS * memory.device

    def peaks(
        self,
        layout: Layout,
        strips: StripConfig,
        tiles: int,
        *,
        fusion: bool,
        offload: bool = False,
        guest: Memory | None = None,
    ) -> Peaks:
        """Of an image, with so many tiles in a network call.

        Args:
            fusion: whether the decoder reads the encoder's features.
            offload: whether parts take turns on the device.
            guest: what another image takes that is encoded or decoded between two strips of this
                one. Unless it is None, network calls for other images are made all the time.
        """
        weights, grid = self.weights, layout.grid
        autoencoder = denoiser = Memory(weights.all)
        if offload and not self.on_host:
            autoencoder = Memory(weights.autoencoder, weights.all)
            denoiser = Memory(weights.denoiser, weights.all)
        call, beside = self._call(tiles, grid.tile_height, grid.tile_width), Memory()
        if guest is not None:
            # Other images need not be as small as this one. With offload none is denoised while
            # the autoencoder is on the device.
            call = self._call(tiles, grid.tile, grid.tile)
            beside = guest + Memory(0 if offload else call)
        canvas = 3 * _FLOAT * _area(layout.padded)
        images = Memory(host=3 * _FLOAT * _area(layout.source) + canvas)
        numbers = self.config.unet.in_channels * grid.height * grid.width
        latents = Memory(_LATENTS * numbers * _FLOAT)
        widths = self.config.autoencoder.feature_widths if fusion else ()
        numbers = sum(channels * _area(layout.padded) // n**2 for channels, n in widths)
        features = Memory.at(strips.keep, numbers * self.dtype.itemsize)
        # The canvas is enlarged a channel at a time. Features wait while a second encoder works.
        encode = self.coding(layout, strips, decode=False, fusion=False)
        encode += autoencoder + features + images + Memory(host=canvas // 3) + beside
        denoise = denoiser + Memory(call) + latents + features + images
        result = Memory(host=canvas + 3 * _area(layout.size) + _ROWS)
        decode = self.coding(layout, strips, decode=True, fusion=fusion)
        decode += autoencoder + latents + images + result + beside
        stages = [denoiser, encode, denoise, decode]
        if self.on_host:
            stages = [Memory(0, stage.device + stage.host, stage.disk) for stage in stages]
        return Peaks(*stages)

    def coding(self, layout: Layout, strips: StripConfig, *, decode: bool, fusion: bool) -> Memory:
        """Maps and strips of encoding or decoding, features that fusion reads among them."""
        cost = self._cost(layout, strips, decode=decode, fusion=fusion)
        return Memory.at(strips.keep, cost.maps) + Memory(cost.strips + _KERNELS)

    def flops(
        self, layout: Layout, strips: StripConfig, tiles: int, options: UpscaleParameters
    ) -> dict[str, int]:
        """Arithmetic of an image of so many tiles, its steps decided, by stage: encode, step (one
        of the `steps`), decode and total. A product and a sum are two."""
        fusion, steps = options.fidelity_weight > 0, options.steps
        encode, decode = (
            self._cost(layout, strips, decode=d, fusion=fusion).flops for d in (False, True)
        )
        step = tiles * tile_flops(self.config, layout.grid.tile_height, layout.grid.tile_width)
        total = encode + step * steps + decode
        return {"encode": encode, "step": step, "steps": steps, "decode": decode, "total": total}

    def _call(self, tiles: int, height: int, width: int) -> int:
        """Bytes of a network call for tiles of these sides (latent pixels), weights aside."""
        unet, kernels = self.config.unet, _KERNELS
        if self.on_host:
            # The largest are those of the up blocks that read a skip too.
            largest = 9 * 2 * max(unet.widths) ** 2
            kernels = max(kernels, 4 * largest * self.dtype.itemsize)
        return tiles * tile_bytes(unet, height, width, self.dtype) + kernels

    def _cost(self, layout: Layout, strips: StripConfig, *, decode: bool, fusion: bool) -> Cost:
        config, sides = self.config.autoencoder, layout.padded
        return coding_cost(config, *sides, strips, self.dtype, decode=decode, fusion=fusion)


def tile_bytes(config: UNetConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Of activations that one tile of these sides (latent pixels) holds at once."""
    below = (*config.widths[1:], config.widths[-1])
    levels = zip(config.widths, below, config.attention, strict=True)
    widest = max(
        (_TRANSFORMER * own if attention else _OWN * own + _BELOW * under) / 4**level
        for level, (own, under, attention) in enumerate(levels)
    )
    return int(widest * height * width * dtype.itemsize)


@lru_cache
def tile_flops(config: ModelConfig, height: int, width: int) -> int:
    """Of one tile of these sides (latent pixels) in one step: counted without weights."""
    with torch.device("meta"), torch.inference_mode():
        networks, t = Networks(config), torch.empty(1)
        noisy = torch.empty(1, config.unet.in_channels, height, width)
        lr = torch.empty(1, config.encoder.in_channels, height, width)
        context = torch.empty(1, config.context_tokens, config.unet.context_width)
        with FlopCounterMode(display=False) as counter:
            networks.denoise(noisy, lr, t, context)
    return int(counter.get_total_flops())


def _area(sides: tuple[int, int]) -> int:
    return sides[0] * sides[1]
