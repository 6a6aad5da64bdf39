"""How much memory each stage of an image's way takes at most, without going it.

`models.pieces` counts the autoencoder's feature maps and strips exactly. What a tile takes in the
denoiser is a formula that a test holds against a trace of the networks. Left out are Python and
the libraries themselves, and what their kernels take for themselves on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from models.config import ModelConfig, UNetConfig
from models.geometry import canvas_size, output_size, padded_size
from models.memory import Memory
from models.networks.bundle import Networks
from models.options import Options
from models.pieces import Pieces, peak_bytes
from models.presets import Preset
from models.tiling import TileGrid

__all__ = ["Estimate", "Layout", "Peaks", "Weights", "tile_bytes"]

_FLOAT = torch.float32.itemsize
# Tensors of the canvas' latent that a step holds: start, LR latent, canvas, noise, the tiles' sum
# and weights, the prediction, and two that the scheduler's arithmetic makes.
_LATENTS = 9
# Numbers a cell that the denoiser holds at most at one level, skips and features included. With a
# transformer, whose gated feed-forward is 16 times as wide as it: so many of the level's channels.
# Without: so many of its own and of those that come up from the level below, joined to its skips.
_TRANSFORMER = 30.0
_OWN, _BELOW = 3.5, 6.5
# What the processor's kernels hold for themselves, at least: measured.
_KERNELS = 96 * 2**20
# What cuDNN and cuBLAS take beside: up to 112 MB on an H200 (`benchmarks.memory`).
_WORKSPACES = 128 * 2**20
# The result's rows on their way to a file, and what a file holds of them meanwhile.
_ROWS = 32 * 2**20
_SAMPLES = 3

_NOTHING = Memory(0, 0, 0)


class Weights(NamedTuple):
    """Bytes of the parameters, by when they are used."""

    autoencoder: int
    denoiser: int
    """UNet and time-aware encoder"""
    two_encoders: bool
    """Whether the latent comes from an autoencoder of its own"""
    text: int = 0
    """Text tower; it stays on the host where parts take turns on the device"""

    @property
    def all(self) -> int:
        return self.autoencoder + self.denoiser + self.text

    @classmethod
    def of(cls, networks: Networks, dtype: torch.dtype) -> Weights:
        """Of networks, which may be on the meta device."""

        def size(*modules: torch.nn.Module | None) -> int:
            found = (p.numel() for m in modules if m is not None for p in m.parameters())
            return sum(found) * dtype.itemsize

        return cls(
            size(networks.autoencoder, networks.first_stage),
            size(networks.unet, networks.encoder),
            networks.first_stage is not None,
            size(networks.text),
        )


@dataclass(frozen=True)
class Layout:
    """The sizes of one image's way, each (height, width)."""

    source: tuple[int, int]
    """The input, px"""
    size: tuple[int, int]
    """The result, px"""
    canvas: tuple[int, int]
    """The upsampled image, px; larger than the result where the input is small"""
    padded: tuple[int, int]
    """The canvas filled up to whole latent cells, px"""
    grid: TileGrid
    """How its latent is cut"""

    @classmethod
    def of(
        cls, config: ModelConfig, preset: Preset, height: int, width: int, options: Options
    ) -> Layout:
        """For an image of these sides.

        Raises:
            InvalidOption: the canvas would be too large, or the overlap is none.
        """
        canvas = canvas_size(height, width, options.scale, preset.native)
        padded = padded_size(canvas, config.autoencoder.downscale)
        rows, columns = (side // config.autoencoder.downscale for side in padded)
        overlap = preset.overlap if options.tile_overlap is None else options.tile_overlap
        return cls(
            (height, width),
            output_size(height, width, options.scale),
            canvas,
            padded,
            TileGrid(rows, columns, preset.tile, overlap),
        )


class Peaks(NamedTuple):
    """Most bytes held at once in each stage."""

    load: Memory
    encode: Memory
    denoise: Memory
    decode: Memory


@dataclass(frozen=True)
class Estimate:
    """Everything that decides how much memory is needed, but for what a plan chooses."""

    config: ModelConfig
    layout: Layout
    weights: Weights
    dtype: torch.dtype
    fusion: bool
    """Whether the decoder reads the encoder's features"""
    unified: bool
    """Whether the device computes in the host's memory: then only `host` is counted"""

    def peaks(
        self,
        pieces: Pieces,
        tile_batch: int,
        *,
        offload: bool,
        meanwhile: int = 0,
        guest: Memory = _NOTHING,
    ) -> Peaks:
        """With these choices.

        `meanwhile`: tiles in the network calls that are made for other images all the time.
        `guest`: of an image that is encoded or decoded between two strips of this one.
        """
        held = self.weights
        autoencoder = held.autoencoder if offload else held.all
        denoiser = held.denoiser if offload else held.all
        waiting = 0
        if offload:
            waiting = held.text if self.unified else held.all
        grid = self.layout.grid
        call = self._call(tile_batch, grid.tile_height, grid.tile_width)
        if meanwhile:
            # Whole tiles: other images need not be as small as this one.
            others = self._call(meanwhile, grid.tile, grid.tile)
            call = max(call, others)
            # With offload the autoencoder has the device to itself.
            autoencoder += 0 if offload else others
        reference = 3 * _FLOAT * _area(self.layout.padded)
        source = 3 * _FLOAT * _area(self.layout.source)
        # The canvas is made a channel at a time.
        made = source + reference + _FLOAT * _area(self.layout.canvas)
        features = self._features(pieces)
        result = _SAMPLES * _area(self.layout.size) + _ROWS
        return Peaks(
            load=self._sum(Memory(denoiser, waiting, 0)),
            encode=self._sum(
                Memory(autoencoder, waiting + max(made, source + reference), 0),
                self._encoding(pieces, features),
                guest,
            ),
            denoise=self._sum(
                Memory(denoiser + call + self._latents(), waiting + source + reference, 0),
                features,
            ),
            decode=self._sum(
                Memory(autoencoder + self._latents(), waiting + source + reference + result, 0),
                self._peak(pieces, decode=True),
                guest,
            ),
        )

    def autoencoding(self, pieces: Pieces) -> Memory:
        """At most, of encoding or decoding alone: maps, strips, and the image itself."""
        image = Memory(0, (3 * _FLOAT + _SAMPLES) * _area(self.layout.padded), 0)
        stages = self._encoding(pieces, self._features(pieces)), self._peak(pieces, decode=True)
        return self._sum(Memory(*map(max, *stages)), image)

    def _encoding(self, pieces: Pieces, features: Memory) -> Memory:
        first = self._peak(pieces, decode=False)
        if not self.weights.two_encoders:
            return first
        second = self._sum(self._peak(pieces, decode=False, fusion=False), features)
        return Memory(*map(max, first, second))

    def _peak(self, pieces: Pieces, *, decode: bool, fusion: bool | None = None) -> Memory:
        counted = peak_bytes(
            self.config.autoencoder,
            *self.layout.padded,
            pieces,
            self.dtype,
            decode=decode,
            fusion=self.fusion if fusion is None else fusion,
        )
        room = _KERNELS if self.unified else _WORKSPACES
        return self._sum(counted, Memory(room, 0, 0))

    def _features(self, pieces: Pieces) -> Memory:
        """Of the encoder's features between encode and decode, where they are kept."""
        cells = _area(self.layout.padded)
        widths = self.config.autoencoder.feature_widths
        numbers = sum(channels * cells // smaller**2 for channels, smaller in widths)
        size = numbers * self.dtype.itemsize * self.fusion
        return Memory(*(size * (pieces.keep == place) for place in ("device", "host", "disk")))

    def _latents(self) -> int:
        cells = self.layout.grid.height * self.layout.grid.width
        return _LATENTS * self.config.unet.in_channels * cells * _FLOAT

    def _call(self, tiles: int, height: int, width: int) -> int:
        """Of a network call for tiles of these sides (cells), weights aside."""
        tile = tile_bytes(self.config.unet, height, width, self.dtype)
        # The processor's convolutions rearrange their weights for themselves at every call.
        kernels = max(_KERNELS, 4 * _largest(self.config.unet) * self.dtype.itemsize)
        return tiles * tile + (kernels if self.unified else _WORKSPACES)

    def _sum(self, *parts: Memory) -> Memory:
        device, host, disk = (sum(numbers) for numbers in zip(*parts, strict=True))
        return Memory(0, device + host, disk) if self.unified else Memory(device, host, disk)


def tile_bytes(config: UNetConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Of activations that one tile of these sides (cells) holds at once in the denoiser."""
    below = (*config.widths[1:], config.widths[-1])
    widest = max(
        (_TRANSFORMER * own if attention else _OWN * own + _BELOW * under) / 4**level
        for level, (own, under, attention) in enumerate(
            zip(config.widths, below, config.attention, strict=True)
        )
    )
    return int(widest * height * width * dtype.itemsize)


def _largest(config: UNetConfig) -> int:
    """Numbers in the largest kernel: the first of an up block's, which reads a skip too."""
    return 9 * 2 * max(config.widths) ** 2


def _area(sides: tuple[int, int]) -> int:
    return sides[0] * sides[1]
