"""How an image goes through the memory that there is: decided before anything is computed.

Plans are tried from the fastest to the one that needs least, and the first that fits is taken:

    maps on the device, else on the host, else on disk
    strips of as many rows as keep the device busy, halved while they do not fit
    then as many tiles in a network call as fit, at most 8
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

from torch import Tensor

from models.config import CompactConfig
from models.errors import NotEnoughMemory
from models.estimate import Estimate, Peaks
from models.geometry import bounded_canvas_size
from models.memory import Memory, MemoryBudget, in_words, places
from models.parameters import UpscaleParameters, preset_parameters
from models.presets import Preset
from models.strips import EncodedStrips, Keep, StripConfig
from models.tiling import Layout

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


@dataclass(frozen=True)
class Plan:
    """How one image is computed."""

    layout: Layout
    tiles: int
    """In one step; both contexts' with guidance"""
    tile_batch: int
    """Of them in one network call"""
    strips: StripConfig
    offload: bool
    peaks: Peaks


@dataclass(frozen=True)
class EncodedImage:
    """An image ready to be sampled. Takes memory or files until it is closed."""

    plan: Plan
    reference: Tensor
    """The enlarged image in [-1, 1], (1, 3, H, W), on the host."""
    latent: Tensor
    """Its scaled latent, float32 (1, c, H/8, W/8), on the device."""
    encoding: EncodedStrips
    """With the features that the decoder reads"""
    keep: Keep
    """Where these are; further away than planned where memory ran out."""

    @property
    def summary(self) -> dict[str, object]:
        """The plan as the encoding left it, for a log line."""
        plan, (height, width) = self.plan, self.plan.layout.canvas
        return {
            "canvas": f"{width}x{height}",
            "tiles": plan.tiles,
            "rows": plan.strips.height,
            "keep": self.keep,
            "offload": plan.offload,
            **{f"peak_{p}_bytes": max(getattr(x, p) for x in plan.peaks) for p in Memory._fields},
        }

    @property
    def memory(self) -> Memory:
        """Bytes that this image takes now."""
        features = Memory.at(self.keep, self.encoding.nbytes)
        return features + Memory(self.latent.nbytes, self.reference.nbytes)

    def close(self) -> None:
        """Frees the features that the decoder would read."""
        self.encoding.close()

    def __enter__(self) -> EncodedImage:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(eq=False)
class Planner:
    """Plans the images of a model; one that is loaded is asked once for each image, and again
    before it is decoded."""

    estimate: Estimate
    preset: Preset
    budget: MemoryBudget
    on_device: Callable[[], int] = lambda: 0
    """Bytes of the loaded weights that are on the device now"""

    def plan(
        self, height: int, width: int, options: UpscaleParameters, in_use: Memory | None = None
    ) -> Plan:
        """`fit`, with what is free now. `in_use`: what this image takes already."""
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
            return replace(image.plan.strips, keep=image.keep)

    def memory(self, in_use: Memory) -> Memory:
        """What is free, and what the networks and an image have of it already."""
        estimate, budget = self.estimate, self.budget
        weights, free = estimate.weights.all, budget.free(estimate.device) + in_use
        if estimate.on_host:
            return Memory(0, free.host + free.device + weights, free.disk)
        return free + Memory(self.on_device(), weights if budget.offload else 0)

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
        estimate, budget = self.estimate, self.budget
        tile_batch = tile_batch or budget.tile_batch
        layout = Layout.of(estimate.config, self.preset, sides, options.scale, options.tile_overlap)
        offload = estimate.needs_offload(memory) if budget.offload is None else budget.offload
        tiles = len(layout.grid) * (2 if options.guidance_scale != 1 else 1)
        guest = None
        if budget.concurrent:
            alone = offload or steps_in(*sides, options, self.preset)
            guest = Memory() if alone else self._guest()
        fusion = options.fidelity_weight > 0
        peaks_of = partial(estimate.peaks, layout, fusion=fusion, offload=offload, guest=guest)
        lacking: list[str] = []
        for strips in self._candidates(layout):
            batch = tile_batch or 1
            peaks = peaks_of(strips, batch)
            if lacking := _lacking(peaks, memory):
                continue
            while tile_batch is None and batch < min(_MAX_TILE_BATCH, tiles):
                larger = peaks_of(strips, 2 * batch)
                if _lacking(larger, memory):
                    break
                batch, peaks = 2 * batch, larger
            return Plan(layout, tiles, batch, strips, offload, peaks)
        raise NotEnoughMemory(
            f"An image of {sides[1]} x {sides[0]} pixels at scale {options.scale:g}, which is "
            f"computed at {layout.canvas[1]} x {layout.canvas[0]}, needs at least "
            f"{'; '.join(lacking)}. A smaller image or scale needs less."
        )

    def _candidates(self, layout: Layout) -> Iterator[StripConfig]:
        """From fast to small."""
        height, width = layout.padded
        pixels = self._strip_pixels(gpu=not self.estimate.on_host)
        budget = self.budget
        for keep in places(self.estimate.device):
            rows = budget.decode_tile or max(1, min(pixels // width, height))
            while rows:
                yield StripConfig(height=rows, keep=keep)
                rows = 0 if budget.decode_tile else rows // 2

    def _strip_pixels(self, *, gpu: bool) -> int:
        if isinstance(self.estimate.config.autoencoder, CompactConfig):
            return _STRIP_PIXELS_COMPACT
        return _STRIP_PIXELS_GPU if gpu else _STRIP_PIXELS

    def _guest(self) -> Memory:
        """What the largest image that steps in takes at most, weights aside."""
        estimate, native = self.estimate, self.preset.native
        sides = native, _GUEST * native
        layout = Layout.of(estimate.config, self.preset, sides, 1, self.preset.overlap)
        strips = StripConfig(height=self._strip_pixels(gpu=False) // sides[1])
        stages = (estimate.coding(layout, strips, decode=d, fusion=True) for d in (False, True))
        return Memory(*map(max, *stages))


def steps_in(height: int, width: int, options: UpscaleParameters, preset: Preset) -> bool:
    """Whether an image of these sides (px) is small: its canvas is two native ones at most. It may
    be encoded and decoded between the strips of an image that is not; plans of those count on one
    such guest at a time, unless networks take turns on the device.

    Raises:
        InvalidOption: the canvas would be too large.
    """
    canvas = bounded_canvas_size(height, width, options.scale, preset.native)
    return canvas[0] * canvas[1] <= _GUEST * preset.native**2


def _lacking(peaks: Peaks, memory: Memory) -> list[str]:
    """What does not fit, in words; nothing if all does."""
    return [
        f"{in_words(need)} of {place} to {stage}, where {in_words(there)} can be had"
        for stage, peak in peaks._asdict().items()
        for place, need, there in zip(_PLACES, peak, memory, strict=True)
        if need > there
    ]
