"""How far a stage is: its step, its seconds, how many steps there will be; the learning rate."""

from __future__ import annotations

import math
from typing import Any

from training.config import LoopSettings

__all__ = ["Progress"]

_FLOOR = 0.02  # of the learning rate, where a cosine ends


class Progress:
    """Kept in checkpoints. The rate follows from it alone, and the number of steps changes at
    checkpoints alone, so that a resumed run learns at the rates of an uninterrupted one."""

    def __init__(self, settings: LoopSettings) -> None:
        self._settings = settings
        self.step = 0
        self.seconds = 0.0
        self.total = settings.steps
        self.recent: dict[str, list[float]] = {}
        """Losses since the last line of the log, by name."""

    def replan(self) -> None:
        """Lowers (or raises again) the number of steps to what fits into the minutes."""
        minutes = self._settings.minutes
        # What is over is not begun again, however much time its last steps left.
        if minutes is not None and self.step and not self.over:
            left = max(0.0, 60 * minutes - self.seconds)
            self.total = min(self._settings.steps, self.step + int(left * self.step / self.seconds))

    @property
    def over(self) -> bool:
        return self.step >= self.total

    @property
    def learning_rate(self) -> float:
        """Of the step that comes."""
        s = self._settings
        rate = s.learning_rate * min(1.0, (self.step + 1) / (s.warmup + 1))
        if s.schedule == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.total)))
            rate *= _FLOOR + (1 - _FLOOR) * share
        return rate

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "total": self.total,
            "recent": self.recent,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds, self.total = state["step"], state["seconds"], state["total"]
        self.recent = state["recent"]
