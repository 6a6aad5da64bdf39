"""Files of the person who runs the command: checked before work begins, written whole or not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.errors import InputError
from jobs.errors import ImageError
from jobs.formats import examine
from stablesr_client.files import format_of

__all__ = ["check_input", "check_output", "write_aside"]


def check_input(path: Path) -> tuple[int, int]:
    """The upright width and height in pixels of an image file, by its structure; none is decoded.

    Raises:
        InputError: there is no such file, it cannot be read, or it is not an image.
    """
    try:
        with path.open("rb") as file:
            return examine(file.read(), sys.maxsize).upright
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except ImageError as error:
        raise InputError(f"{path} is not an image that can be read: {error.detail}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def check_output(path: Path) -> str:
    """The format that `path` asks for: "png", "webp", "jpeg" or "tiff".

    Raises:
        InputError: its suffix is none of those known, or its folder is missing.
    """
    try:
        output_format = format_of(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}.")
    return output_format


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Gives a path beside `target`, and renames it to `target` when the block ends well.

    Raises:
        InputError: the file cannot be written.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield aside
        aside.replace(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)
