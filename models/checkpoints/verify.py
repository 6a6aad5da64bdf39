"""Checks a folder of weights: every tensor there, finite, and the files as they were written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.checkpoints.description import Record, describe, sum_of
from models.checkpoints.folder import open_folder
from models.checkpoints.progress import Listener, WeightsProgress, ignore
from models.checkpoints.writing import is_finite
from models.errors import CheckpointMismatch, CheckpointUnreadable, WeightsNotFound

__all__ = ["Verified", "verify"]


@dataclass(frozen=True)
class Verified:
    """What a folder without fault holds."""

    bytes: int
    dtypes: Mapping[str, int]
    """How many tensors have each type."""
    record: Record | None
    """With the sums that the files were compared with; None where none were recorded."""


def verify(folder: Path, progress: Listener = ignore) -> Verified:
    """Reads all of a folder of weights.

    Raises:
        WeightsNotFound: the folder or one of its files is not there.
        CheckpointUnreadable: a file is damaged, or not what was written.
        CheckpointMismatch: tensors are missing, left over, of the wrong shape or not finite.
    """
    record = describe(folder).record
    _, found = open_folder(folder)
    for file in record.files if record else ():
        if not (folder / file.name).is_file():
            raise WeightsNotFound(f"The weights in {folder} are not complete: no {file.name}.")
        now = sum_of(folder / file.name, progress)
        if now != file:
            raise CheckpointUnreadable(
                f"{folder / file.name} is not what was written: its sha256 is {now.sha256} and was "
                f"{file.sha256}. Pull or convert the weights again."
            )
    total = sum(path.stat().st_size for path in found.files)
    done, dtypes = 0, Counter[str]()
    for name, stored in found.tensors.items():
        tensor = stored.read()
        if not is_finite(tensor):
            raise CheckpointMismatch(f"{name} in {folder} has values that are no numbers.")
        dtypes[str(stored.dtype).removeprefix("torch.")] += 1
        done += tensor.nbytes
        progress(WeightsProgress("verify", folder.name, done, total))
    return Verified(total, dtypes, record)
