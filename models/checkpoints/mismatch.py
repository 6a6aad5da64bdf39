"""What a set of tensors lacks, has too much of, or has in another shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from models.errors import CheckpointMismatch

__all__ = ["check_names"]

_NAMED = 5


def check_names(
    path: Path,
    found: Mapping[str, Sequence[int]],
    wanted: Mapping[str, Sequence[int]],
    *,
    others: Iterable[str] = (),
    to: str = "the networks",
) -> None:
    """Whether the names and shapes of `found` are exactly those of `wanted`.

    Args:
        path: of the file or folder, for the message.
        others: names that hold no tensor.
        to: what it does not fit, for the message.

    Raises:
        CheckpointMismatch: with the first few names of what is missing, left over or of the wrong
            shape.
    """
    faults = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
    faults += [f"left over {name}" for name in sorted({*found, *others} - wanted.keys())]
    faults += [
        f"{name} has shape {tuple(found[name])} instead of {tuple(wanted[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if tuple(wanted[name]) != tuple(found[name])
    ]
    if faults:
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise CheckpointMismatch(f"{path} does not fit {to}: {'; '.join(faults[:_NAMED])}{more}.")
