"""TIFF's directories of tags (TIFF 6.0, section 2; BigTIFF likewise), in files and EXIF blocks.

Only the values that are asked for are read, and of those only whole numbers and no more than make
sense: entries may all point to the same bytes, so a small file can claim any amount of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .header import MOST_PIECES, Bytes, MalformedFile, TruncatedFile

__all__ = ["Directory", "directories"]

MOST_ENTRIES = 4096
"""Of one directory; cameras write some dozens."""

NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
"""Types of whole numbers, as `struct` names them."""


@dataclass(frozen=True)
class Kind:
    """How a file writes: `order` of bytes as in `struct`; 64-bit offsets where `big`."""

    order: str
    big: bool

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, number of values, and the values or where they are."""
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))


class Directory:
    """The tags of one directory of `data`, which starts at byte `start`.

    Raises:
        TruncatedFile: it, or values that are asked for, lie behind the last byte.
        MalformedFile: it has too many entries or values, or values of another type.
        struct.error: it ends inside a number.
    """

    def __init__(self, data: Bytes, kind: Kind, start: int) -> None:
        if start >= len(data):
            raise TruncatedFile("its directory lies behind the last byte")
        self._data, self._kind = data, kind
        count = struct.unpack_from(kind.count, data, start)[0]
        if count > MOST_ENTRIES:
            raise MalformedFile(
                f"its directory has {count} entries; at most {MOST_ENTRIES} are read"
            )
        entry = kind.entry
        first = start + struct.calcsize(kind.count)
        end = first + count * entry.size
        if end > len(data):
            raise TruncatedFile("it ends inside its directory")
        self._entries: dict[int, tuple[int, int, bytes]] = {}
        for tag, type_, values, place in entry.iter_unpack(data[first:end]):
            self._entries.setdefault(tag, (type_, values, place))
        self.next: int = struct.unpack_from(kind.offset, data, end)[0]
        """Where the next directory starts; 0 after the last."""

    def values(self, tag: int) -> tuple[int, ...]:
        """The numbers of a tag; none where there is no such tag."""
        found = self._entries.get(tag)
        if found is None:
            return ()
        type_, count, place = found
        if type_ not in NUMBERS:
            raise MalformedFile(f"its tag {tag} is of type {type_}, which is no whole number")
        if count > MOST_PIECES:
            raise MalformedFile(f"its tag {tag} has {count} values; at most {MOST_PIECES} are read")
        layout = f"{self._kind.order}{count}{NUMBERS[type_]}"
        size = struct.calcsize(layout)
        if size <= len(place):
            return struct.unpack(layout, place[:size])
        start = struct.unpack(self._kind.offset, place)[0]
        if start + size > len(self._data):
            raise TruncatedFile(f"the values of its tag {tag} lie behind the last byte")
        return struct.unpack_from(layout, self._data, start)

    def value(self, tag: int, default: int | None = None) -> int:
        """The first number of a tag; without a default it has to be there."""
        values = self.values(tag)
        if values:
            return values[0]
        if default is None:
            raise MalformedFile(f"its directory has no tag {tag}")
        return default


def directories(data: Bytes, most: int) -> Iterator[Directory]:
    """The first `most` directories in their order, at least one; raises as Directory does."""
    kind = Kind("<" if data[:2] == b"II" else ">", big=data[2:4] in (b"+\0", b"\0+"))
    start = struct.unpack_from(kind.offset, data, 8 if kind.big else 4)[0]
    for _ in range(most):
        found = Directory(data, kind, start)
        yield found
        start = found.next
        if not start:
            return
