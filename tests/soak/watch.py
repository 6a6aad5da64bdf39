"""Memory and open descriptors of the processes, a second apart, and whether they grow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.load.__main__ import memory_mb

EVERY_S = 1.0
# A younger process still loads and caches what its first jobs need.
JUDGED_S = 120.0
# From the first quarter of a process' life to its last; 5 MB were seen, and 2 files.
MOST_GROWTH_MB = 20.0
MOST_DESCRIPTORS = 15


class Sample(NamedTuple):
    moment: float
    memory_mb: float
    descriptors: int


@dataclass(frozen=True)
class Life:
    """The longest life of a process in one role; medians of its first and last quarter."""

    role: str
    seconds: float
    memory_mb: tuple[float, float]
    descriptors: tuple[float, float]

    @property
    def fault(self) -> str:
        """What is wrong with it, or nothing."""
        if self.seconds < JUDGED_S:
            return ""
        megabytes = self.memory_mb[1] - self.memory_mb[0]
        more = self.descriptors[1] - self.descriptors[0]
        if megabytes > MOST_GROWTH_MB:
            return f"{self.role}: grew by {megabytes:.1f} MB, of {MOST_GROWTH_MB:g} at most"
        if more > MOST_DESCRIPTORS:
            return f"{self.role}: has {more:g} more files open, of {MOST_DESCRIPTORS} at most"
        return ""


class Watch(threading.Thread):
    """Samples the process of each role until `leaving` is set; `roles` say its number."""

    def __init__(self, roles: Mapping[str, Callable[[], int]]) -> None:
        super().__init__(name="watch", daemon=True)
        self._roles = roles
        self._samples: dict[tuple[str, int], list[Sample]] = {}
        self.leaving = threading.Event()

    def run(self) -> None:
        while not self.leaving.wait(EVERY_S):
            for role, pid_of in self._roles.items():
                # In this moment it may be dead, or its successor not there yet.
                with suppress(OSError, AssertionError, ValueError):
                    pid = pid_of()
                    count = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
                    sample = Sample(time.monotonic(), memory_mb(pid), count)
                    self._samples.setdefault((role, pid), []).append(sample)

    def lives(self) -> list[Life]:
        """The longest of each role."""
        longest: dict[str, list[Sample]] = {}
        for (role, _), samples in self._samples.items():
            if len(samples) > len(longest.get(role, ())):
                longest[role] = samples
        return [_life(role, samples) for role, samples in longest.items() if len(samples) >= 4]


def _life(role: str, samples: list[Sample]) -> Life:
    quarter = len(samples) // 4
    first, last = samples[:quarter], samples[-quarter:]
    return Life(
        role,
        samples[-1].moment - samples[0].moment,
        (median(s.memory_mb for s in first), median(s.memory_mb for s in last)),
        (median(s.descriptors for s in first), median(s.descriptors for s in last)),
    )
