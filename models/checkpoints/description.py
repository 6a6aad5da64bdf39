"""What a folder of weights says of itself: the networks' sizes, and where the numbers come from.

Both stand in `config.json`, the second under "weights". There is no date in it: the same files
converted in the same way give the same folder, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.checkpoints.places import CONFIG
from models.checkpoints.progress import Listener, WeightsProgress, ignore
from models.config import ModelConfig
from models.errors import CheckpointUnreadable, WeightsNotFound

__all__ = ["Description", "FileSum", "Record", "describe", "sum_of"]

FORMAT = 1
_CHUNK = 2**20


@dataclass(frozen=True)
class FileSum:
    """A file as it was when it was read or written."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """How a folder came to be."""

    preset: str
    dtype: str
    """Of its tensors, but for those in float32."""
    float32: tuple[str, ...]
    """Tensors kept in float32 because they do not fit the type of the others."""
    shared_encoder: bool
    """Whether one VAE encoder serves both, the two files' being equal."""
    licence: str
    licence_url: str
    sources: tuple[FileSum, ...]
    """What was converted."""
    files: tuple[FileSum, ...]
    """What was written."""
    format: int = FORMAT


@dataclass(frozen=True)
class Description:
    """`record` is None for weights that no conversion made, such as the embedded ones."""

    config: ModelConfig
    record: Record | None = None

    def to_json(self) -> dict[str, Any]:
        described = self.config.to_json()
        if self.record is not None:
            described["weights"] = asdict(self.record)
        return described


def describe(folder: Path) -> Description:
    """What the folder's `config.json` says.

    Raises:
        WeightsNotFound: there is none.
        CheckpointUnreadable: it is damaged, or of a version that is not known.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise WeightsNotFound(f"There are no weights in {folder}: {CONFIG} is missing.")
    try:
        described = json.loads(path.read_text())
        recorded = described.pop("weights", None)
        return Description(ModelConfig.from_json(described), recorded and _record(recorded))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointUnreadable(
            f"{path} does not describe weights that this version can read ({error!r:.200}); "
            "convert the weights again, or use the version that wrote it."
        ) from error


def _record(recorded: dict[str, Any]) -> Record:
    if recorded["format"] != FORMAT:
        raise ValueError(f"format {recorded['format']} instead of {FORMAT}")
    sums = {k: tuple(FileSum(**s) for s in recorded[k]) for k in ("sources", "files")}
    return Record(**{**recorded, **sums, "float32": tuple(recorded["float32"])})


def sum_of(path: Path, progress: Listener = ignore) -> FileSum:
    """A file's size and SHA-256, which takes a second or two for each gigabyte. Raises OSError."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            done += len(piece)
            progress(WeightsProgress("check", path.name, done, total))
    return FileSum(path.name, done, digest.hexdigest())
