"""Jobs that went through together, and what they took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["STAGES", "Done", "Round", "percentile"]

STAGES = ("queue", "load", "encode", "denoise", "decode", "save")
"""Of a job's way. Encoding and decoding include waiting for another job's; saving includes the
colour correction."""


@dataclass(frozen=True)
class Done:
    """One job that has succeeded."""

    seconds: float
    """From its submission to its end"""
    stages: dict[str, float]
    """Seconds of each of STAGES that was timed"""


@dataclass(frozen=True)
class Round:
    """Some jobs, one after the other or at once."""

    seconds: float
    """From the first one's submission to the last one's end, by the clock on the wall"""
    jobs: tuple[Done, ...]
    calls: int
    """Network calls"""
    tiles: int
    """That they predicted"""
    fill: float
    """Mean of (tiles in a call / tiles that a call has room for)"""

    @property
    def images_per_second(self) -> float:
        return len(self.jobs) / self.seconds

    @property
    def tiles_per_call(self) -> float:
        return self.tiles / self.calls if self.calls else 0.0

    def latency(self, share: float) -> float:
        """Seconds that this share of the jobs took at most."""
        return percentile([job.seconds for job in self.jobs], share)

    def stage(self, name: str) -> float:
        """Mean seconds of a stage; 0 where it was not timed."""
        return statistics.fmean(job.stages.get(name, 0.0) for job in self.jobs)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed (nearest rank).

    Raises:
        ValueError: there are no values.
    """
    ordered: Sequence[float] = sorted(values)
    if not ordered:
        raise ValueError("there are no values, so none of them is a percentile")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
