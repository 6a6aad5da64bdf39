"""Plans of a loaded model: for its networks where they lie, with what memory is free now.

And what is decided of memory while it is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from models.config import ModelConfig
from models.errors import NotEnoughMemory
from models.estimate import Weights
from models.memory import Memory, free_memory
from models.networks.bundle import Networks
from models.options import Options
from models.pieces import Pieces
from models.plan import Plan, Resources, needs_offload, plan
from models.prepared import Prepared
from models.presets import Preset
from models.residency import Residency

__all__ = ["Planner", "room_to_grow", "takes_turns"]

log = logging.getLogger(__name__)

_NOTHING = Memory(0, 0, 0)
# Of what is free beside the weights: the rest is for images.
_GROWTH = 1 / 3


@dataclass(eq=False)
class Planner:
    """Asked once for every image, and again before it is decoded."""

    config: ModelConfig
    preset: Preset
    device: torch.device
    dtype: torch.dtype
    weights: Weights
    resources: Resources
    """Of which offload is decided"""
    residency: Residency
    room: Callable[[int], int]
    """Tiles that a network call has, where a plan gives it so many"""

    def plan(self, height: int, width: int, options: Options, held: Memory = _NOTHING) -> Plan:
        """How an image of these sides (px) would go now.

        `held`: what it has taken already.

        Raises:
            InvalidOption: no canvas or no tiles can be made for it.
            NotEnoughMemory: nothing fits.
        """
        given = self.resources
        if given.shared and given.shared_batch is None:
            given = replace(given, shared_batch=self.tile_batch)
        return self._plan(height, width, options, held, given)

    @cached_property
    def tile_batch(self) -> int:
        """Tiles that one network call has room for, whatever images they are of.

        Decided once, with what memory was free then: plans count on calls of this size.
        """
        given = self.resources
        side = 2 * self.preset.native  # has more tiles than a call
        tiles = given.tile_batch
        if tiles is None:
            tiles = self._plan(side, side, Options(scale=1), _NOTHING, given).tile_batch
        return self.room(tiles)

    def pieces_now(self, prepared: Prepared, options: Options) -> Pieces:
        """For decoding: what was free when the image was encoded may be another's now."""
        try:
            return self.plan(*prepared.plan.layout.source, options, prepared.held).pieces
        except NotEnoughMemory as error:
            # Refusing now would waste the steps that were made. Strips shrink when they must.
            log.warning("decoding as planned, although: %s", error)
            return replace(prepared.plan.pieces, keep=prepared.encoding.keep)

    def _plan(
        self, height: int, width: int, options: Options, held: Memory, given: Resources
    ) -> Plan:
        return plan(
            self.config,
            self.preset,
            height,
            width,
            options,
            dtype=self.dtype,
            device=self.device,
            memory=self.memory(held),
            weights=self.weights,
            resources=given,
        )

    def memory(self, held: Memory) -> Memory:
        """What is free, and what the networks and an image have of it already."""
        given = self.resources
        device, host, disk = free_memory(self.device, given.scratch, given.memory_limit)
        weights = self.residency.held(self.weights)
        if self.device.type != "cuda":
            text = self.weights.text if given.offload else 0
            return Memory(0, host + weights + text + held.device + held.host, disk + held.disk)
        waiting = self.weights.all if given.offload else 0
        return Memory(device + weights + held.device, host + waiting + held.host, disk + held.disk)


def takes_turns(
    empty: Networks, preset: Preset, device: torch.device, dtype: torch.dtype, given: Resources
) -> bool:
    """Whether networks that are about to be loaded must take turns on the device (offload).

    `empty`: of their sizes; what values they have does not matter.
    """
    return needs_offload(
        empty.config,
        preset,
        dtype=dtype,
        device=device,
        memory=free_memory(device, given.scratch, given.memory_limit),
        weights=Weights.of(empty, dtype),
    )


def room_to_grow(given: Resources, free: int | None = None) -> int:
    """Bytes of the host's memory that loaded weights may take besides, where it makes them faster.

    `free`: what is left beside them; what is free now, if not given.
    """
    if free is None:
        free = free_memory(torch.device("cpu"), given.scratch, given.memory_limit).host
    return max(0, int(free * _GROWTH))
