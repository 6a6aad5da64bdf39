"""The same benchmark of another checkout of this project, with its own code and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.results import Measurement, Result

Row = Mapping[str, Any]


def environment_of(checkout: Path) -> dict[str, str]:
    """In which Python imports that checkout's packages; to be run in its folder."""
    return {**os.environ, "PYTHONPATH": str(checkout.resolve())}


def measure_checkout(
    checkout: Path,
    module: str,
    arguments: Sequence[str],
    older: Callable[[Row], list[Measurement]] | None = None,
) -> list[Measurement]:
    """What the command `module` of that checkout measures; its variants are named after it.

    Args:
        older: reads a row of what builds before 0.2.0 print, which had another schema.

    Raises:
        subprocess.CalledProcessError: the command failed; it has printed why.
        ValueError: it printed rows, and there is nothing to read them.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--json"]
    process = subprocess.run(
        command,
        cwd=checkout,
        env=environment_of(checkout),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = json.loads(process.stdout)
    if isinstance(rows, list):
        if older is None:
            raise ValueError(f"{checkout} is of a build before 0.2.0, which cannot be compared.")
        measurements = [m for row in rows for m in older(row)]
    else:
        measurements = Result.model_validate(rows).measurements
    name = checkout.resolve().name
    return [replace(m, variant=f"{name} {m.variant}") for m in measurements]
