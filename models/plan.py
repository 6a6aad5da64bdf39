"""How an image goes through the memory that there is: decided before anything is computed.

Plans are tried from the fastest to the one that needs least, and the first that fits is taken:

    maps on the device, else on the host, else on disk
    strips of as many rows as keep the device busy, halved while they do not fit
    then as many tiles in a network call as fit, at most 8

`models.strips` counts the autoencoder's maps, strips and arithmetic by going through its passes.
What a tile takes in the denoiser is a formula that a test holds against a trace of the networks.
Left out are Python and the libraries themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoints.files import preset_folder
from models.checkpoints.folder import describe
from models.config import CompactConfig, ModelConfig, UNetConfig
from models.errors import NotEnoughMemory, WeightsNotFound
from models.fusing import is_worthwhile, use_winograd
from models.layout import Layout
from models.memory import Memory, MemoryBudget, in_words, places, room_to_grow
from models.networks.bundle import Networks
from models.parameters import UpscaleParameters, preset_parameters
from models.presets import Preset
from models.strips import Cost, EncodedStrips, StripConfig, coding_cost

log = logging.getLogger(__name__)

_MAX_TILE_BATCH = 8
# Canvases of the native size that an image may have at most to step in between the strips of one
# that has more.
_GUEST = 2
# Pixels of a strip at the image's size: enough to keep the device busy. Strips of equal pixels
# take equal memory, however wide the image.
_STRIP_PIXELS, _STRIP_PIXELS_GPU = 2**17, 2**18
# The compact autoencoder has a tenth of the channels at the image's size, and computes eight rows
# twice at each border of a strip: larger strips take less time and no more memory.
_STRIP_PIXELS_COMPACT = 2**19
_PLACES = "the device's memory", "the host's memory", "scratch disk"
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
    text: int
    """Text tower; it stays on the host where parts take turns on the device"""


@dataclass(frozen=True)
class Plan:
    """How one image is computed."""

    layout: Layout
    tile_batch: int
    """Tiles in one network call"""
    strips: StripConfig
    offload: bool
    peaks: dict[str, Memory]
    """Most bytes at once, weights included, of load, encode, denoise and decode. Where the
    processor computes, all its memory is the host's."""


@dataclass(frozen=True)
class EncodedImage:
    """An image ready to be sampled. Takes memory or files until it is closed."""

    plan: Plan
    """As the encoding left it: maps are further away where memory ran out."""
    reference: Tensor
    """The enlarged image in [-1, 1], (1, 3, H, W), on the host."""
    latent: Tensor
    """Its scaled latent, float32 (1, c, H/8, W/8), on the device."""
    encoding: EncodedStrips
    """With the features that the decoder reads"""

    @property
    def summary(self) -> dict[str, object]:
        """The plan, for a log line."""
        plan, (height, width) = self.plan, self.plan.layout.canvas
        peaks = zip(Memory._fields, map(max, *plan.peaks.values()), strict=True)
        return {
            "canvas": f"{width}x{height}",
            "tiles": plan.layout.tiles,
            "rows": plan.strips.height,
            "keep": plan.strips.keep,
            "offload": plan.offload,
            **{f"peak_{place}_bytes": peak for place, peak in peaks},
        }

    @property
    def memory(self) -> Memory:
        """Bytes that this image takes now."""
        features = Memory(**{self.plan.strips.keep: self.encoding.nbytes})
        return features + Memory(self.latent.nbytes, self.reference.nbytes)

    def close(self) -> None:
        """Frees the features that the decoder would read."""
        self.encoding.close()

    def __enter__(self) -> EncodedImage:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Planner:
    """Plans the images of a model; one that is loaded is asked once for each image, and again
    before it is decoded. The networks may be on the meta device."""

    def __init__(
        self,
        networks: Networks,
        preset: Preset,
        dtype: torch.dtype,
        device: torch.device,
        budget: MemoryBudget,
    ) -> None:
        self.config, self.preset, self.budget = networks.config, preset, budget
        self._dtype, self._device = dtype, device
        # Whether the device computes in the host's memory.
        self._on_host = device.type != "cuda"

        def size(*modules: nn.Module | None) -> int:
            parameters = (p for module in modules if module for p in module.parameters())
            return sum(p.numel() for p in parameters) * dtype.itemsize

        self.weights = Weights(
            size(networks.autoencoder, networks.first_stage),
            size(networks.unet, networks.encoder),
            size(networks.text),
        )

    @classmethod
    def of_preset(
        cls,
        preset: Preset,
        dtype: torch.dtype,
        device: torch.device,
        budget: MemoryBudget,
        memory: Memory,
    ) -> Planner:
        """Of a preset as it is loaded where there is so much memory. Its weights need not be here:
        without their folder the networks are those of the released checkpoint."""
        try:
            config, _ = describe(preset_folder(preset))
        except WeightsNotFound:
            config = ModelConfig()
        with torch.device("meta"):
            networks = Networks(config)
        if is_worthwhile(device, dtype):
            weights = sum(cls(networks, preset, dtype, device, budget).weights)
            use_winograd(networks, room_to_grow(memory.host - weights))
        return cls(networks, preset, dtype, device, budget)

    def needs_offload(self, memory: Memory) -> bool:
        """Whether all networks on the device leave too little beside them, for full-size ones on a
        canvas of the native size; it depends on no image. Networks on the host have nowhere to
        wait."""
        return not self._on_host and sum(self.weights) > _MOST_WEIGHTS * memory.device

    def plan(
        self, height: int, width: int, options: UpscaleParameters, in_use: Memory | None = None
    ) -> Plan:
        """`fit`, with what is free now. `in_use`: what this image takes already. With offload the
        autoencoder is on the device."""
        # With other images calls hold tiles of all, and are as large as was decided once.
        tile_batch = self.tile_batch if self.budget.concurrent else None
        return self.fit((height, width), options, self.memory(in_use or Memory()), tile_batch)

    @cached_property
    def tile_batch(self) -> int:
        """Tiles that one network call has on a device, whatever images they are of. Decided once,
        with what memory was free then: plans count on calls of this size."""
        sides = 2 * self.preset.native, 2 * self.preset.native  # has more tiles than a call
        native = preset_parameters(self.preset, scale=1, fidelity_weight=0.5)
        return self.budget.tile_batch or self.fit(sides, native, self.memory(Memory())).tile_batch

    def strips_now(self, image: EncodedImage, options: UpscaleParameters) -> StripConfig:
        """For decoding: what was free when the image was encoded may be another's now."""
        try:
            return self.plan(*image.plan.layout.source, options, image.memory).strips
        except NotEnoughMemory as error:
            # Refusing now would waste the denoising. Strips shrink when they must.
            log.warning("decoding as planned, although: %s", error)
            return image.plan.strips

    def memory(self, in_use: Memory) -> Memory:
        """What is free, and what the loaded networks and an image have of it already."""
        weights, free = sum(self.weights), self.budget.free(self._device) + in_use
        if self._on_host:
            return Memory(0, free.host + free.device + weights, free.disk)
        return free + (
            Memory(self.weights.autoencoder, weights) if self.budget.offload else Memory(weights)
        )

    def fit(
        self,
        sides: tuple[int, int],
        options: UpscaleParameters,
        memory: Memory,
        tile_batch: int | None = None,
    ) -> Plan:
        """The fastest way of an input of these sides (height, width; px) that fits into so much
        memory, that of the networks included. `tile_batch`: decided already, as in the budget.

        Raises:
            InvalidOption: no canvas or no tiles can be made for this image.
            NotEnoughMemory: not even the smallest plan fits; says what is missing.
        """
        tile_batch, offload = tile_batch or self.budget.tile_batch, self.budget.offload
        layout = Layout.of(sides, options, self.preset, self.config)
        layout.check_canvas()
        if offload is None:
            offload = self.needs_offload(memory)
        largest = (min(_MAX_TILE_BATCH, layout.tiles) - 1).bit_length()
        batches = [tile_batch] if tile_batch else [1 << n for n in range(largest, -1, -1)]
        lacking: list[str] = []
        for strips, batch in product(self._candidates(layout), batches):
            fusion = options.fidelity_weight > 0
            peaks = self._peaks(layout, strips, batch, fusion=fusion, offload=offload)
            lacking = [
                f"{in_words(need)} of {place} to {stage}, where {in_words(there)} can be had"
                for stage, peak in peaks.items()
                for place, need, there in zip(_PLACES, peak, memory, strict=True)
                if need > there
            ]
            if not lacking:
                return Plan(layout, batch, strips, offload, peaks)
        raise NotEnoughMemory(
            f"An image of {sides[1]} x {sides[0]} pixels at scale {options.scale:g}, which is "
            f"computed at {layout.canvas[1]} x {layout.canvas[0]}, needs at least "
            f"{'; '.join(lacking)}. A smaller image or scale needs less."
        )

    def flops(self, plan: Plan, options: UpscaleParameters) -> dict[str, int]:
        """Arithmetic of an image by stage: encode, step (one of the `steps`), decode and total. A
        product and a sum are two."""
        fusion, steps, grid = options.fidelity_weight > 0, options.steps, plan.layout.grid
        encode, decode = (
            self._cost(plan.layout, plan.strips, decode=decode, fusion=fusion).flops
            for decode in (False, True)
        )
        step = plan.layout.tiles * tile_flops(self.config, grid.tile_height, grid.tile_width)
        total = encode + step * steps + decode
        return {"encode": encode, "step": step, "steps": steps, "decode": decode, "total": total}

    def _candidates(self, layout: Layout) -> Iterator[StripConfig]:
        """From fast to small."""
        height, width = layout.padded
        pixels = _STRIP_PIXELS if self._on_host else _STRIP_PIXELS_GPU
        if isinstance(self.config.autoencoder, CompactConfig):
            pixels = _STRIP_PIXELS_COMPACT
        for keep in places(self._device):
            rows = self.budget.decode_tile or max(1, min(pixels // width, height))
            while rows:
                yield StripConfig(height=rows, keep=keep)
                rows = 0 if self.budget.decode_tile else rows // 2

    def _peaks(
        self, layout: Layout, strips: StripConfig, tiles: int, *, fusion: bool, offload: bool
    ) -> dict[str, Memory]:
        """As of `Plan`, with so many tiles in a network call; with `fusion` the decoder reads the
        encoder's features."""
        weights, grid, concurrent = self.weights, layout.grid, self.budget.concurrent
        autoencoder = denoiser = Memory(sum(weights))
        if offload and not self._on_host:
            autoencoder = Memory(weights.autoencoder, sum(weights))
            denoiser = Memory(weights.denoiser, sum(weights))
        # Calls hold tiles of other images too, which need not be as small as this one.
        sides = (grid.tile, grid.tile) if concurrent else (grid.tile_height, grid.tile_width)
        call, others = self._call(tiles, *sides), Memory()
        # With offload no other is worked on while the autoencoder is on the device.
        if concurrent and not offload:
            small = is_small(layout.canvas, self.preset)
            others = Memory(call) if small else Memory(call) + self._guest
        canvas = 3 * _FLOAT * _area(layout.padded)
        images = Memory(host=3 * _FLOAT * _area(layout.source) + canvas)
        numbers = self.config.unet.in_channels * grid.height * grid.width
        latents = Memory(_LATENTS * numbers * _FLOAT)
        widths = self.config.autoencoder.feature_widths if fusion else ()
        numbers = sum(channels * _area(layout.padded) // n**2 for channels, n in widths)
        features = Memory(**{strips.keep: numbers * self._dtype.itemsize})
        # The canvas is enlarged a channel at a time. Features wait while a second encoder works.
        encode = self._coding(layout, strips, decode=False, fusion=False)
        encode += autoencoder + features + images + Memory(host=canvas // 3) + others
        denoise = denoiser + Memory(call) + latents + features + images
        result = Memory(host=canvas + 3 * _area(layout.size) + _ROWS)
        decode = self._coding(layout, strips, decode=True, fusion=fusion)
        decode += autoencoder + latents + images + result + others
        stages = {"load": denoiser, "encode": encode, "denoise": denoise, "decode": decode}
        if self._on_host:
            return {name: Memory(0, x.device + x.host, x.disk) for name, x in stages.items()}
        return stages

    @cached_property
    def _guest(self) -> Memory:
        """What the largest image that steps in takes at most, weights aside."""
        sides = self.preset.native, _GUEST * self.preset.native
        options = preset_parameters(self.preset, scale=1)
        layout = Layout.of(sides, options, self.preset, self.config)
        strips = next(self._candidates(layout))
        stages = (self._coding(layout, strips, decode=d, fusion=True) for d in (False, True))
        return Memory(*map(max, *stages))

    def _coding(self, layout: Layout, strips: StripConfig, *, decode: bool, fusion: bool) -> Memory:
        """Maps and strips of encoding or decoding, features that fusion reads among them."""
        cost = self._cost(layout, strips, decode=decode, fusion=fusion)
        return Memory(**{strips.keep: cost.maps}) + Memory(cost.strips + _KERNELS)

    def _cost(self, layout: Layout, strips: StripConfig, *, decode: bool, fusion: bool) -> Cost:
        config, sides = self.config.autoencoder, layout.padded
        return coding_cost(config, *sides, strips, self._dtype, decode=decode, fusion=fusion)

    def _call(self, tiles: int, height: int, width: int) -> int:
        """Bytes of a network call for tiles of these sides (latent pixels), weights aside."""
        unet, kernels = self.config.unet, _KERNELS
        if self._on_host:
            # The largest are those of the up blocks that read a skip too.
            largest = 9 * 2 * max(unet.widths) ** 2
            kernels = max(kernels, 4 * largest * self._dtype.itemsize)
        return tiles * tile_bytes(unet, height, width, self._dtype) + kernels


def is_small(canvas: tuple[int, int], preset: Preset) -> bool:
    """Whether an image of this canvas may be encoded and decoded between the strips of one that is
    not small; plans of those count on one such guest at a time, unless networks take turns on the
    device."""
    return _area(canvas) <= _GUEST * preset.native**2


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
