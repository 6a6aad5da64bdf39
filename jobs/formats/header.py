"""What every format's reader finds and raises."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "MOST_PIECES",
    "ORIENTATION",
    "Bytes",
    "FileFault",
    "Header",
    "MalformedFile",
    "Mode",
    "TruncatedFile",
    "UnsupportedPixels",
    "check_pieces",
    "name_of",
    "opening",
    "valid",
]

Bytes = bytes | mmap.mmap

Mode = Literal["L", "LA", "RGB", "RGBA", "CMYK", "CMYKA", "YCbCr"]
"""The channels that a decoder gives: palettes are spread out and a colour key becomes alpha.

YCbCr only where it is stored bare; a JPEG is RGB, whatever it has inside.
"""

ORIENTATION = 0x0112

MOST_PIECES = 65_536
"""Chunks, segments, boxes or strips of one file: walking more would take seconds, and no program
writes so many."""


class FileFault(Exception):
    """A file that is not taken; the message says why, as the end of a sentence about it."""


class MalformedFile(FileFault):
    """The bytes are not a well-formed file of their format; the message says where."""


class TruncatedFile(MalformedFile):
    """The file ends before its own structure does."""


class UnsupportedPixels(FileFault):
    """A well-formed file whose pixels have no clear meaning as colours, or are not read here."""


@dataclass(frozen=True)
class Header:
    """What a file's header says, before decoding.

    `width` and `height` are in pixels as stored; `orientation` is the EXIF value 1..8 and
    5 to 8 swap the sides. `frames` is 1 for a still image and more for anything else. `depth` is
    the bits of a channel, of a palette's colours where there is one.
    """

    format: str
    width: int
    height: int
    frames: int = 1
    orientation: int = 1
    mode: Mode = "RGB"
    depth: int = 8

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) in pixels once the orientation is applied."""
        if self.orientation >= 5:
            return self.height, self.width
        return self.width, self.height


@contextmanager
def opening(name: str) -> Iterator[None]:
    """Turns whatever Pillow's parser stumbles over into a MalformedFile."""
    try:
        yield
    except FileFault:
        raise
    # On hostile bytes Pillow's plugins raise anything from SyntaxError to OverflowError, and all
    # of it says the same: this header cannot be read.
    except Exception as error:
        raise MalformedFile(f"its {name} header cannot be read ({error})") from error


def check_pieces(count: int, what: str) -> None:
    """Refuses a file of more pieces than any that is written."""
    if count > MOST_PIECES:
        raise MalformedFile(f"it has more than {MOST_PIECES} {what}, the most that are read")


def valid(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def name_of(kind: bytes) -> str:
    """A chunk's four letters, safe to print."""
    return kind.decode("ascii", "backslashreplace").strip()
