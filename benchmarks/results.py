"""The one schema of all results: where and when something was measured, and the numbers."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from pydantic.dataclasses import dataclass

from benchmarks.machine import describe

Unit = Literal["s", "bytes", "images/s", "levels", "score", "times", "count"]
"""`levels` are of 255. `times` is a ratio, `score` has the unit of its metric."""

HIGHER_IS_BETTER = frozenset({"images/s"})
COMPARABLE = HIGHER_IS_BETTER | {"s", "bytes"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Measurement:
    """One number."""

    variant: str
    """What is compared: a build, a precision, a library"""
    case: str
    """What all variants did, such as a batch size; empty where there is one case"""
    quantity: str
    value: float
    unit: Unit
    at_least: bool = False
    """Whether it was not waited for: the real value is above this one"""


class Result(BaseModel):
    """What one command measured."""

    model_config = ConfigDict(extra="forbid")

    machine: str
    date: date
    versions: dict[str, str]
    """Of Python, torch and this project"""
    command: str
    subject: str
    """What was measured, in words"""
    measurements: list[Measurement]
    failures: dict[str, str] = {}
    """Why parts ended early, by their names"""

    @classmethod
    def of(cls, module: str, subject: str, device: str, measurements: list[Measurement]) -> Result:
        """A result of this process, which runs the command `module`."""
        return cls(
            machine=describe(torch.device(device)),
            date=datetime.now(UTC).date(),
            versions={
                "python": ".".join(map(str, sys.version_info[:3])),
                "torch": torch.__version__,
                "stablesr": metadata.version("stablesr-server"),
            },
            command=shlex.join(["python", "-m", module, *sys.argv[1:]]),
            subject=subject,
            measurements=measurements,
        )

    @classmethod
    def read(cls, path: Path) -> Result:
        """From a file that `--json` wrote.

        Raises:
            ValueError: it is none.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is no result of a benchmark: {error}") from error

    def ratio(self, measurement: Measurement) -> float | None:
        """How many times as good as the first variant of the same case: as fast, as small.

        None where there is nothing to compare. Of a bound the ratio is a bound too.
        """
        if measurement.unit not in COMPARABLE:
            return None
        key = measurement.case, measurement.quantity
        first = next(m for m in self.measurements if (m.case, m.quantity) == key)
        if first.variant == measurement.variant or first.at_least or not measurement.value:
            return None
        better = measurement.unit in HIGHER_IS_BETTER
        ratio = first.value / measurement.value
        return 1 / ratio if better else ratio


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed (nearest rank).

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("There are no values, so none of them is a percentile.")
    rank = -int(-share * len(values) // 1)
    return sorted(values)[max(0, rank - 1)]
