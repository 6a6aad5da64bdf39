"""Where weights lie on the disk, why they may be absent, their sums, and room for them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.errors import DiskFull
from models.presets import Preset

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""The tensors of a folder lie in WEIGHTS, or in several files that this one lists."""


def weights_root() -> Path:
    """Where pulled and converted weights live: STABLESR_WEIGHTS, else the user's data folder."""
    folder = os.environ.get("STABLESR_WEIGHTS")
    return Path(folder or Path.home() / ".local" / "share" / "stablesr" / "weights")


def preset_folder(preset: Preset, root: Path | None = None) -> Path:
    """The folder of a preset's weights; it need not exist."""
    if preset.embedded:
        return Path(__file__).parents[1] / "weights" / preset.name
    return (root or weights_root()) / preset.name


def note_absence(preset: Preset, reason: str | None) -> None:
    """Leaves a note beside their place why a preset's weights are not here; None removes it.

    `stablesr weights prepare` does, and a worker without weights repeats the reason, which is a
    clause that clients may read. Raises OSError.
    """
    path = _note(preset)
    if reason is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({"reason": reason}) + "\n")


def absence_of(preset: Preset) -> str | None:
    """What the note of a preset says; None when there is none."""
    try:
        return str(json.loads(_note(preset).read_text())["reason"])
    except FileNotFoundError:
        return None


def _note(preset: Preset) -> Path:
    return weights_root() / f"{preset.name}.absent.json"


def partial_path(path: Path, token: str) -> Path:
    """Where `path` is written before it is whole. Short: `path` may have the longest of names."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{digest}.{token}.part")


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Gives a path beside `path`, and renames it to `path` when the block ends well: a file is
    whole or not there. Raises OSError."""
    aside = partial_path(path, str(os.getpid()))
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a small file aside and renames it. Raises OSError."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class WeightsProgress:
    """How far a download or a conversion is; `position` of `total` are bytes."""

    stage: Literal["wait", "download", "check", "convert", "verify"]
    """wait: another process is at work on the same folder. check: the sums of files are taken."""
    name: str
    """The file's or the preset's."""
    position: int = 0
    total: int = 0


OnProgress = Callable[[WeightsProgress], None]


def ignore(progress: WeightsProgress) -> None:
    """Does nothing."""


@dataclass(frozen=True)
class FileSum:
    """A file as it was when it was read or written."""

    name: str
    bytes: int
    sha256: str


def sum_of(path: Path, on_progress: OnProgress = ignore) -> FileSum:
    """A file's size and SHA-256, which takes a second or two for each gigabyte. Raises OSError."""
    digest, position, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            position += len(chunk)
            on_progress(WeightsProgress("check", path.name, position, total))
    return FileSum(path.name, position, digest.hexdigest())


def check_room(folder: Path, size: int) -> None:
    """Whether `size` bytes fit on the disk that `folder` lies on, or will. Raises DiskFull."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        sizes = f"{free / 1e9:.1f} GB free, and {size / 1e9:.1f} GB are needed"
        raise DiskFull(f"The disk of {folder} has {sizes}.")


def is_disk_full(error: OSError) -> bool:
    """Whether an error says that the disk, or one's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
