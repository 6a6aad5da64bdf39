"""What a process that was killed while it wrote a folder of weights left beside it.

`.NAME.*.part` is a folder in the making, or one that was replaced and is being removed;
`.NAME.*.old` is a whole one that makes room for another: between its two renames there is no folder
NAME. Whoever works on one holds its lock, which ends with the process, so that the living are told
from the dead; process numbers would not do, which containers share.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from secrets import token_hex

__all__ = ["beside", "clear_leftovers", "holding"]

log = logging.getLogger(__name__)


def beside(folder: Path) -> tuple[Path, Path]:
    """Names that nothing has yet: of the folder in the making, and of the one that it replaces."""
    token = token_hex(4)
    return (
        folder.with_name(f".{folder.name}.{token}.part"),
        folder.with_name(f".{folder.name}.{token}.old"),
    )


@contextmanager
def holding(folder: Path) -> Iterator[bool]:
    """Holds a folder's lock, under whatever name the folder gets meanwhile; false if another
    process does. Some network file systems lock no folders; there nobody is known to hold one."""
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
    for old in sorted(_leftovers(folder, "old"), key=lambda path: -path.stat().st_mtime):
        with holding(old) as dead:
            if not dead:
                continue
            if not folder.exists():
                old.rename(folder)
                log.warning("%s was left aside by a process that was killed, and is back", folder)
            else:
                shutil.rmtree(old, ignore_errors=True)
    for part in _leftovers(folder, "part"):
        with holding(part) as dead:
            if dead:
                shutil.rmtree(part, ignore_errors=True)


def _leftovers(folder: Path, ending: str) -> list[Path]:
    pattern = f".{escape(folder.name)}.*.{ending}"
    return [path for path in folder.parent.glob(pattern) if path.is_dir()]
