"""The image that is sent, in the forms a caller may have it, and the format of what comes back."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

__all__ = ["FORMATS", "Image", "format_of", "opened"]

Image = Path | str | bytes | BinaryIO
"""A file's path, a file's content, or an open binary file."""

FORMATS: Mapping[str, str] = {
    ".png": "png",
    ".webp": "webp",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".tif": "tiff",
    ".tiff": "tiff",
}
"""The format of a result by the suffix of its file's name."""


def format_of(target: Path) -> str:
    """The format that a file's name asks for.

    Raises:
        ValueError: its suffix is none of those known.
    """
    try:
        return FORMATS[target.suffix.lower()]
    except KeyError:
        known = ", ".join(FORMATS)
        raise ValueError(f"{target}: the name must end in one of {known}.") from None


@contextmanager
def opened(image: Image, filename: str | None) -> Iterator[tuple[str, BinaryIO]]:
    """The image's name and a file that can be read more than once."""
    if isinstance(image, bytes):
        yield filename or "image", io.BytesIO(image)
    elif isinstance(image, str | Path):
        with open(image, "rb") as file:
            yield _sendable(filename or Path(image).name), file
    else:
        named = getattr(image, "name", None)
        name = filename or (PurePath(named).name if isinstance(named, str) else "image")
        yield _sendable(name), image if image.seekable() else io.BytesIO(image.read())


def _sendable(name: str) -> str:
    """A file name that is no UTF-8 made so; the server keeps it only to name the result."""
    return name.encode("utf-8", "replace").decode()
