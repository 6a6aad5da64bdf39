"""Files of the person who runs the command: checked before work begins, written whole or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cli.errors import InputError

__all__ = ["OUTPUT_FORMATS", "check_input", "check_output", "write_aside"]

OUTPUT_FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
"""The output's format by its file name's end."""


def check_input(path: Path) -> tuple[int, int]:
    """The width and height in pixels of an image file, read from its header only.

    Raises:
        InputError: there is no such file, it cannot be read, or it is not an image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image that can be read.") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large: {error}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def check_output(path: Path) -> str:
    """The format that `path` asks for: "png", "webp" or "jpeg".

    Raises:
        InputError: its suffix is none of those known, or its folder is missing.
    """
    output_format = OUTPUT_FORMATS.get(path.suffix.lower())
    if output_format is None:
        known = ", ".join(OUTPUT_FORMATS)
        raise InputError(f"{path}: the output's name must end in one of {known}.")
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
