"""What is decided about compiling before networks are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from models.errors import InvalidOption

__all__ = ["ROWS_AHEAD", "Compiling", "Mode"]

ROWS_AHEAD = 8
"""As many as an encoder's call fills a GPU with."""

Mode = Literal["auto", "on", "off"]
"""`auto`: where the device is a GPU."""


@dataclass(frozen=True)
class Compiling:
    """Whether network calls are compiled, and of which sizes they are.

    Raises:
        InvalidOption: `fixed_batch` is below 1, or `ahead` below 0.
    """

    mode: Mode = "off"
    cache: Path | None = None
    """Folder for what was compiled; None is torch's own (`TORCHINDUCTOR_CACHE_DIR`)"""
    fixed_batch: int | None = None
    """Every call has so many tiles, the missing ones being filled up. A tile is then computed by
    the same kernels whatever else is in the call, so its result does not depend on that."""
    ahead: int | None = None
    """Steps of a tile that a call of the encoder computes at once where a network call has no other
    tile; 0 is none, None is what suits the device. With a fixed batch there are none."""
    whole: bool | None = None
    """Whether images of a single tile are encoded and decoded by compiled calls, where network
    calls are compiled; None is what suits the device. With a fixed batch they are not: whether an
    image has room to go whole depends on others."""

    def __post_init__(self) -> None:
        if self.fixed_batch is not None and self.fixed_batch < 1:
            raise InvalidOption(f"fixed_batch is {self.fixed_batch}, but must be at least 1.")
        if self.ahead is not None and self.ahead < 0:
            raise InvalidOption(f"ahead is {self.ahead}, but must be at least 0.")

    def wanted(self, device: torch.device) -> bool:
        """Whether calls on that device are to be compiled."""
        return self.mode == "on" or (self.mode == "auto" and device.type == "cuda")

    def rows_ahead(self, device: torch.device) -> int:
        """Rows of the encoder's calls ahead on that device; 0 is none."""
        if self.fixed_batch is not None:
            return 0
        if self.ahead is not None:
            return self.ahead
        # A processor is busy with one tile. Uncompiled, no one has seen to it that memory has room.
        return ROWS_AHEAD if device.type == "cuda" and self.wanted(device) else 0

    def whole_images(self, device: torch.device) -> bool:
        """Whether images of a single tile go through the autoencoder by compiled calls."""
        if self.fixed_batch is not None or not self.wanted(device):
            return False
        # A processor is busy with a strip, and says between two how far it is.
        return device.type == "cuda" if self.whole is None else self.whole
