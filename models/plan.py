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
from functools import cached_property
from pathlib import Path

import torch

from models.config import CompactConfig, ModelConfig
from models.errors import InvalidOption, NotEnoughMemory
from models.estimate import Estimate, Peaks
from models.geometry import bounded_canvas_size
from models.memory import Memory, MemoryBudget, in_words
from models.parameters import UpscaleParameters, preset_parameters
from models.pieces import Keep, Pieces
from models.presets import Preset
from models.tiling import Layout

__all__ = ["Plan", "Planner", "Resources", "further", "needs_offload", "plan", "steps_in"]

log = logging.getLogger(__name__)

_MAX_TILE_BATCH = 8
# The share of the device's memory that all weights may take together.
_MOST_WEIGHTS = 2 / 3
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
class Resources:
    """What the host gives, and what is decided in the plan's place; None: the plan does.

    Raises:
        InvalidOption: a number below 1.
    """

    memory_limit: int | None = None
    """Bytes that this process may take, in total, on the device that computes"""
    tile_batch: int | None = None
    """Tiles in one network call"""
    decode_tile: int | None = None
    """Rows (px) that the autoencoder works on at once"""
    offload: bool | None = None
    """Whether networks that do not work wait on the host"""
    scratch: Path | None = None
    """Folder for feature maps that fit into no memory; None: the system's for temporary files"""
    shared: bool = False
    """Whether other images are denoised while one is encoded or decoded, and small ones step in
    between the strips of a large one"""

    def __post_init__(self) -> None:
        for name in ("memory_limit", "tile_batch", "decode_tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidOption(f"{name} is {value}, but must be at least 1.")

    def free(self, device: torch.device) -> Memory:
        """What there is now for networks on that device."""
        return MemoryBudget(device, self.scratch, self.memory_limit).free()


@dataclass(frozen=True)
class Plan:
    """How one image is computed."""

    layout: Layout
    tiles: int
    """In one step; both contexts' with guidance"""
    tile_batch: int
    """Of them in one network call"""
    pieces: Pieces
    offload: bool
    peaks: Peaks

    @property
    def summary(self) -> dict[str, object]:
        """For a log line."""
        height, width = self.layout.canvas
        return {
            "canvas": f"{width}x{height}",
            "tiles": self.tiles,
            "rows": self.pieces.rows,
            "keep": self.pieces.keep,
            "offload": self.offload,
            **{f"peak_{p}_bytes": max(getattr(x, p) for x in self.peaks) for p in Memory._fields},
        }


def plan(
    estimate: Estimate,
    preset: Preset,
    sides: tuple[int, int],
    options: UpscaleParameters,
    memory: Memory,
    resources: Resources,
) -> Plan:
    """The fastest way of an input of these sides (height, width; px) that fits into the memory
    that there is, that of the networks included.

    Raises:
        InvalidOption: no canvas or no tiles can be made for this image.
        NotEnoughMemory: not even the smallest plan fits; says what is missing.
    """
    layout = Layout.of(estimate.config, preset, sides, options.scale, options.tile_overlap)
    offload = resources.offload
    if offload is None:
        offload = needs_offload(estimate, memory)
    tiles = len(layout.grid) * (2 if options.guidance_scale != 1 else 1)
    guest = None
    if resources.shared:
        alone = offload or steps_in(*sides, options, preset)
        guest = Memory() if alone else _guest(estimate, preset)

    def peaks_of(pieces: Pieces, batch: int) -> Peaks:
        return estimate.peaks(
            layout,
            pieces,
            batch,
            fusion=options.fidelity_weight > 0,
            offload=offload,
            guest=guest,
        )

    lacking: list[str] = []
    for pieces in _candidates(estimate, layout, resources):
        batch = resources.tile_batch or 1
        peaks = peaks_of(pieces, batch)
        if lacking := _lacking(peaks, memory):
            continue
        while resources.tile_batch is None and batch < min(_MAX_TILE_BATCH, tiles):
            larger = peaks_of(pieces, 2 * batch)
            if _lacking(larger, memory):
                break
            batch, peaks = 2 * batch, larger
        return Plan(layout, tiles, batch, pieces, offload, peaks)
    raise NotEnoughMemory(
        f"An image of {sides[1]} x {sides[0]} pixels at scale {options.scale:g}, which is computed "
        f"at {layout.canvas[1]} x {layout.canvas[0]}, needs at least {'; '.join(lacking)}. "
        "A smaller image or scale needs less."
    )


def steps_in(height: int, width: int, options: UpscaleParameters, preset: Preset) -> bool:
    """Whether an image of these sides (px) is small: its canvas is two native ones at most.

    It may be encoded and decoded between the strips of an image that is not; plans of those count
    on one such guest at a time, unless networks take turns on the device.

    Raises:
        InvalidOption: the canvas would be too large.
    """
    canvas = bounded_canvas_size(height, width, options.scale, preset.native)
    return canvas[0] * canvas[1] <= _GUEST * preset.native**2


def needs_offload(estimate: Estimate, memory: Memory) -> bool:
    """Whether all networks on the device leave too little beside them: of full size, for a canvas
    of the native size.

    Decided once, when networks are loaded, so it cannot depend on an image. Where the device
    computes in the host's memory there is nowhere to put a network aside.
    """
    return not estimate.unified and estimate.weights.all > _MOST_WEIGHTS * memory.device


def further(pieces: Pieces, device: torch.device, memory: Memory) -> Pieces | None:
    """The same with maps kept one place further away; None where there is none."""
    places = _places(device)
    beyond = places[places.index(pieces.keep) + 1 :]
    if not beyond or (beyond[0] == "disk" and not memory.disk):
        return None
    return replace(pieces, keep=beyond[0])


def _places(device: torch.device) -> tuple[Keep, ...]:
    """Where maps can be, nearest first."""
    return ("device", "host", "disk") if device.type == "cuda" else ("device", "disk")


def _candidates(estimate: Estimate, layout: Layout, resources: Resources) -> Iterator[Pieces]:
    """From fast to small."""
    height, width = layout.padded
    pixels = _strip_pixels(estimate.config, gpu=not estimate.unified)
    for keep in _places(estimate.device):
        rows = resources.decode_tile or max(1, min(pixels // width, height))
        while rows:
            yield Pieces(rows=rows, keep=keep, scratch=resources.scratch)
            rows = 0 if resources.decode_tile else rows // 2


def _strip_pixels(config: ModelConfig, *, gpu: bool) -> int:
    if isinstance(config.autoencoder, CompactConfig):
        return _STRIP_PIXELS_COMPACT
    return _STRIP_PIXELS_GPU if gpu else _STRIP_PIXELS


def _guest(estimate: Estimate, preset: Preset) -> Memory:
    """What the largest image that steps in takes at most, weights aside."""
    sides = preset.native, _GUEST * preset.native
    layout = Layout.of(estimate.config, preset, sides, 1, preset.overlap)
    pieces = Pieces(rows=_strip_pixels(estimate.config, gpu=False) // sides[1])
    stages = (estimate.coding(layout, pieces, decode=d, fusion=True) for d in (False, True))
    return Memory(*map(max, *stages))


def _lacking(peaks: Peaks, memory: Memory) -> list[str]:
    """What does not fit, in words; nothing if all does."""
    return [
        f"{in_words(need)} of {place} to {stage}, where {in_words(there)} can be had"
        for stage, peak in peaks._asdict().items()
        for place, need, there in zip(_PLACES, peak, memory, strict=True)
        if need > there
    ]


@dataclass(eq=False)
class Planner:
    """Plans the images of a loaded model: asked once for each, and again before it is decoded."""

    estimate: Estimate
    preset: Preset
    resources: Resources
    """Of which offload is decided"""
    on_device: Callable[[], int]
    """Bytes of the weights that are on the device now"""
    room: Callable[[int], int]
    """Tiles that a network call has, where a plan gives it so many"""

    def plan(
        self, height: int, width: int, options: UpscaleParameters, held: Memory | None = None
    ) -> Plan:
        """As `plan`, with what is free now. `held`: what this image has taken already."""
        resources = self.resources
        if resources.shared:
            # Calls hold tiles of all images, and are as large as was decided once.
            resources = replace(resources, tile_batch=self.tile_batch)
        memory = self.memory(held or Memory())
        return plan(self.estimate, self.preset, (height, width), options, memory, resources)

    @cached_property
    def tile_batch(self) -> int:
        """Tiles that one network call has room for, whatever images they are of.

        Decided once, with what memory was free then: plans count on calls of this size.
        """
        sides = 2 * self.preset.native, 2 * self.preset.native  # has more tiles than a call
        native = preset_parameters(self.preset, scale=1, fidelity_weight=0.5)
        memory = self.memory(Memory())
        return self.room(
            self.resources.tile_batch
            or plan(self.estimate, self.preset, sides, native, memory, self.resources).tile_batch
        )

    def pieces_now(
        self, plan: Plan, options: UpscaleParameters, held: Memory, keep: Keep
    ) -> Pieces:
        """For decoding: what was free when the image was encoded may be another's now. `held`:
        what it has taken; `keep`: where its features are."""
        try:
            return self.plan(*plan.layout.source, options, held).pieces
        except NotEnoughMemory as error:
            # Refusing now would waste the steps that were made. Strips shrink when they must.
            log.warning("decoding as planned, although: %s", error)
            return replace(plan.pieces, keep=keep)

    def memory(self, held: Memory) -> Memory:
        """What is free, and what the networks and an image have of it already."""
        estimate, resources = self.estimate, self.resources
        weights, free = estimate.weights.all, resources.free(estimate.device) + held
        if estimate.unified:
            return Memory(0, free.host + free.device + weights, free.disk)
        return free + Memory(self.on_device(), weights if resources.offload else 0)
