"""How an image goes through the memory that there is: decided before anything is computed.

The diffusion's canvas is small and its tiles are cut as they are needed, so what is left to plan
is how many tiles one network call takes, and for the autoencoder how many rows it works on at
once and where whole feature maps wait meanwhile. Plans are tried from the fastest to the one that
needs least, and the first that fits is taken:

    maps on the device, else on the host, else on disk
    strips of as many rows as keep the device busy, halved while they do not fit
    then as many tiles in a call as fit, at most 8
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.config import CompactConfig, ModelConfig
from models.errors import InvalidOption, NotEnoughMemory
from models.estimate import Estimate, Layout, Peaks, Weights
from models.geometry import canvas_size
from models.memory import Memory, in_words
from models.options import Options
from models.pieces import Keep, Pieces
from models.presets import Preset

__all__ = [
    "MAX_TILE_BATCH",
    "Plan",
    "Resources",
    "further",
    "needs_offload",
    "plan",
    "steps_in",
]

MAX_TILE_BATCH = 8
"""Tiles in one network call, unless somebody decides otherwise."""

# Canvases of the native size that a picture may have at most to step in between the strips of one
# that has more.
_GUEST = 2

# Cells of a map of the image's size that a strip has: enough to keep the device busy. Strips of
# equal cells take equal memory, however wide the image.
_STRIP_CELLS = {"cuda": 2**18}
_STRIP_CELLS_ELSEWHERE = 2**17
# The compact autoencoder has a tenth of the channels at the image's size, and computes eight rows
# twice at each border of a strip: larger strips take less time and no more memory.
_STRIP_CELLS_COMPACT = 2**19

_NOBODY = Memory(0, 0, 0)


@dataclass(frozen=True)
class Resources:
    """What the host gives, and what somebody decides in the plan's place; None: the plan does.

    Raises:
        InvalidOption: a number below 1.
    """

    memory_limit: int | None = None
    """Bytes that this process may take, in all, on the device that computes"""
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
    shared_batch: int | None = None
    """Tiles in one network call for them; None: as many as in this image's"""

    def __post_init__(self) -> None:
        for name in ("memory_limit", "tile_batch", "decode_tile", "shared_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidOption(f"{name} is {value}, but must be at least 1.")


@dataclass(frozen=True)
class Plan:
    """One image's way."""

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
        device, host, disk = (max(numbers) for numbers in zip(*self.peaks, strict=True))
        return {
            "canvas": f"{width}x{height}",
            "tiles": self.tiles,
            "rows": self.pieces.rows,
            "keep": self.pieces.keep,
            "offload": self.offload,
            "peak_device_bytes": device,
            "peak_host_bytes": host,
            "peak_disk_bytes": disk,
        }


def plan(
    config: ModelConfig,
    preset: Preset,
    height: int,
    width: int,
    options: Options,
    *,
    dtype: torch.dtype,
    device: torch.device,
    memory: Memory,
    weights: Weights,
    resources: Resources | None = None,
) -> Plan:
    """The fastest way that fits.

    Args:
        config: of the networks.
        preset: tile and native size.
        height, width: of the input, px.
        options: of this image.
        dtype, device: of the networks.
        memory: bytes that there are, the networks' own included.
        weights: what the networks take.
        resources: what is decided already.

    Raises:
        InvalidOption: no canvas or no tiles can be made for this image.
        NotEnoughMemory: not even the smallest plan fits; says what is missing.
    """
    given = resources or Resources()
    layout = Layout.of(config, preset, height, width, options)
    unified = device.type != "cuda"
    fusion = options.fidelity_weight > 0
    tiles = len(layout.grid) * (2 if options.guidance_scale != 1 else 1)
    estimate = Estimate(config, layout, weights, dtype, fusion, unified)
    cells = _strip_cells(config, device)
    rows = given.decode_tile or max(1, min(cells // layout.padded[1], layout.padded[0]))
    offload = given.offload
    if offload is None:
        offload = needs_offload(
            config, preset, dtype=dtype, device=device, memory=memory, weights=weights
        )

    guest = _NOBODY
    if given.shared and not offload and not steps_in(height, width, options, preset):
        guest = _guest(estimate, preset)

    def peaks_of(pieces: Pieces, batch: int) -> Peaks:
        meanwhile = (given.shared_batch or batch) if given.shared else 0
        return estimate.peaks(pieces, batch, offload=offload, meanwhile=meanwhile, guest=guest)

    least: list[str] = []
    for pieces in _pieces(rows, unified, given):
        batch = given.tile_batch or 1
        peaks = peaks_of(pieces, batch)
        if least := _missing(peaks, memory):
            continue
        while given.tile_batch is None and batch < min(MAX_TILE_BATCH, tiles):
            larger = peaks_of(pieces, 2 * batch)
            if _missing(larger, memory):
                break
            batch, peaks = 2 * batch, larger
        return Plan(layout, tiles, batch, pieces, offload, peaks)
    raise NotEnoughMemory(
        f"An image of {width} x {height} pixels at scale {options.scale:g}, which is computed at "
        f"{layout.canvas[1]} x {layout.canvas[0]}, needs at least {'; '.join(least)}. "
        "A smaller image or scale needs less."
    )


def _strip_cells(config: ModelConfig, device: torch.device) -> int:
    if isinstance(config.autoencoder, CompactConfig):
        return _STRIP_CELLS_COMPACT
    return _STRIP_CELLS.get(device.type, _STRIP_CELLS_ELSEWHERE)


def steps_in(height: int, width: int, options: Options, preset: Preset) -> bool:
    """Whether an image of these sides (px) is small: its canvas is two native ones at most.

    It may be encoded and decoded between the strips of an image that is not; plans of those count
    on one such guest at a time, unless networks take turns on the device.

    Raises:
        InvalidOption: the canvas would be too large.
    """
    canvas = canvas_size(height, width, options.scale, preset.native)
    return canvas[0] * canvas[1] <= _GUEST * preset.native**2


def _guest(estimate: Estimate, preset: Preset) -> Memory:
    """What the largest image that steps in takes at most, weights aside."""
    sides = (preset.native, _GUEST * preset.native)
    layout = Layout.of(estimate.config, preset, *sides, Options(scale=1))
    guest = replace(estimate, layout=layout, fusion=True)
    cells = _strip_cells(estimate.config, torch.device("cpu"))
    return guest.autoencoding(Pieces(rows=cells // sides[1]))


def needs_offload(
    config: ModelConfig,
    preset: Preset,
    *,
    dtype: torch.dtype,
    device: torch.device,
    memory: Memory,
    weights: Weights,
) -> bool:
    """Whether all networks on the device leave too little beside them for the smallest canvas.

    Decided once, when networks are loaded, so it cannot depend on an image. Where the device
    computes in the host's memory there is nowhere to put a network aside.
    """
    if device.type != "cuda":
        return False
    native = Options(scale=1)
    layout = Layout.of(config, preset, preset.native, preset.native, native)
    estimate = Estimate(config, layout, weights, dtype, True, unified=False)
    pieces = Pieces(rows=_STRIP_CELLS_ELSEWHERE // preset.native)
    return bool(_missing(estimate.peaks(pieces, 1, offload=False), memory))


def further(pieces: Pieces, device: torch.device, memory: Memory) -> Pieces | None:
    """The same with maps kept one place further away; None where there is none."""
    places = _places(device.type != "cuda")
    beyond = places[places.index(pieces.keep) + 1 :]
    if not beyond or (beyond[0] == "disk" and not memory.disk):
        return None
    return Pieces(pieces.rows, beyond[0], pieces.attention_keys, pieces.scratch)


def _places(unified: bool) -> tuple[Keep, ...]:
    """Where maps can be, nearest first."""
    return ("device", "disk") if unified else ("device", "host", "disk")


def _pieces(rows: int, unified: bool, given: Resources) -> Iterator[Pieces]:
    """From fast to small."""
    for keep in _places(unified):
        smaller = rows
        while True:
            yield Pieces(rows=smaller, keep=keep, scratch=given.scratch)
            if smaller == 1 or given.decode_tile is not None:
                break
            smaller //= 2


def _missing(peaks: Peaks, memory: Memory) -> list[str]:
    """What does not fit, in words; nothing if all does."""
    return [
        f"{in_words(need)} of {_PLACES[place]} to {stage}, where {in_words(there)} can be had"
        for stage, peak in peaks._asdict().items()
        for place, need, there in zip(Memory._fields, peak, memory, strict=True)
        if need > there
    ]


_PLACES = {"device": "the device's memory", "host": "the host's memory", "disk": "scratch disk"}
