"""How far a download or a conversion is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Listener", "WeightsProgress", "ignore"]


@dataclass(frozen=True)
class WeightsProgress:
    """A moment of the work; `done` of `total` are bytes."""

    stage: Literal["wait", "download", "check", "convert", "verify"]
    """wait: another process is at work on the same folder. check: the sums of files are taken."""
    name: str
    """The file's or the preset's."""
    done: int = 0
    total: int = 0


Listener = Callable[[WeightsProgress], None]


def ignore(now: WeightsProgress) -> None:
    """Tells nobody."""
