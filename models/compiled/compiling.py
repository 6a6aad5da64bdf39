"""What is decided about compiling before networks are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from models.errors import InvalidOption

__all__ = ["Compiling", "Mode"]

Mode = Literal["auto", "on", "off"]
"""`auto`: where the device is a GPU."""


@dataclass(frozen=True)
class Compiling:
    """Whether network calls are compiled, and of which sizes they are.

    Raises:
        InvalidOption: `fixed_batch` is below 1.
    """

    mode: Mode = "off"
    cache: Path | None = None
    """Folder for what was compiled; None is torch's own (`TORCHINDUCTOR_CACHE_DIR`)"""
    fixed_batch: int | None = None
    """Every call has so many tiles, the missing ones being filled up. A tile is then computed by
    the same kernels whatever else is in the call, so its result does not depend on that."""

    def __post_init__(self) -> None:
        if self.fixed_batch is not None and self.fixed_batch < 1:
            raise InvalidOption(f"fixed_batch is {self.fixed_batch}, but must be at least 1.")

    def wanted(self, device: torch.device) -> bool:
        """Whether calls on that device are to be compiled."""
        return self.mode == "on" or (self.mode == "auto" and device.type == "cuda")
