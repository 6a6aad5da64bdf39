"""Where weights lie on the disk: their folders, sums, room, and a new folder in place of an old.

A folder is written beside its place and renamed. `.NAME.*.part` is one in the making, or one that
was replaced and is being removed; `.NAME.*.old` is a whole one that makes room: between its two
renames there is no folder NAME. The process at work holds the folder's lock, which ends with it, so
that leftovers of a killed process are known. Process numbers would not do: containers share them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from secrets import token_hex
from typing import Literal

from models.errors import DiskFull
from models.presets import Preset

log = logging.getLogger(__name__)

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


def replace_text(path: Path, text: str) -> None:
    """Writes a small file aside and renames it. Raises OSError."""
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


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


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Gives a new folder beside `folder`, and puts it in its place when the block ends well.

    Raises:
        DiskFull: the disk ran full in the block.
    """
    new = folder.with_name(f".{folder.name}.{token_hex(4)}.part")
    try:
        new.mkdir(parents=True)
        with _lock(new):
            yield new
            if folder.exists():
                _replace(folder, new)
            else:
                new.rename(folder)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(f"The disk of {folder} ran full; nothing was kept.") from error
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace(folder: Path, new: Path) -> None:
    """Puts `new` in the place of `folder`, or leaves that one there. `clear_leftovers` does the
    same for a process that is killed in between."""
    old = new.with_suffix(".old")
    with _lock(folder):
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
        # What is half removed must not be taken for a folder to be put back.
        old.rename(new)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Locks a folder, under whatever name it gets meanwhile; false if another process holds it.
    Some network file systems lock no folders; there every process is taken to be gone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            log.warning("no lock on %s: %s", folder, error.strerror)
        yield True
    finally:
        os.close(descriptor)


def clear_leftovers(folder: Path) -> None:
    """Puts the folder back if a process was killed while it replaced it; removes what else such
    processes left. Raises OSError."""
    beside = folder.parent.glob(f".{escape(folder.name)}.*.*")
    leftovers = [p for p in beside if p.suffix in (".old", ".part") and p.is_dir()]
    # The newest old one first: it is the one to put back.
    leftovers.sort(key=lambda path: (path.suffix != ".old", -path.stat().st_mtime))
    for leftover in leftovers:
        with _lock(leftover) as is_free:
            if is_free and leftover.suffix == ".old" and not folder.exists():
                leftover.rename(folder)
                log.warning("%s was left by a process that was killed, and is back", folder)
            elif is_free:
                shutil.rmtree(leftover, ignore_errors=True)
