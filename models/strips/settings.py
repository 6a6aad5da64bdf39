"""How an autoencoder is run in strips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Callbacks", "Keep", "StripConfig"]

Keep = Literal["device", "host", "disk"]
"""Where feature maps wait between two layers."""


@dataclass(frozen=True)
class StripConfig:
    """Size of the strips and where whole feature maps are kept.

    A strip has `rows` rows of the larger of a layer's two maps, at every level. A level of half
    the size has half the cells in a row and up to twice the channels, so strips of one height
    take about the same memory at all levels, and the low levels are cut into few.
    """

    rows: int = 64
    """Rows of a feature map that are worked on at once, at least 1; halos come on top."""
    keep: Keep = "device"
    attention_keys: int = 65_536
    """Latent cells up to which the middle attention is exact; above, keys are averaged."""
    scratch: Path | None = None
    """Folder for `keep="disk"`; None is the system's. It must not lie in memory (tmpfs)."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"A strip of {self.rows} rows is none; at least 1 is needed.")
        if self.attention_keys < 1:
            raise ValueError(f"{self.attention_keys} attention keys are none; give at least 1.")


@dataclass(frozen=True)
class Callbacks:
    """What is told, and asked, between two strips."""

    progress: Callable[[float], None] = lambda fraction: None
    """Fraction of the arithmetic that is done, rising to 1."""
    check: Callable[[], None] = lambda: None
    """May raise to cancel: all that is held is freed and the error passed on."""
    on_shrink: Callable[[int, int], None] = lambda before, after: None
    """Memory ran out: strips had so many rows and have so many from now on."""
