"""Parts of a result (RFC 9110, section 14): one range of bytes, from an offset or from the end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from service.errors import RangeNotSatisfiable

__all__ = ["Range", "wanted_range"]

_BYTES = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Range:
    """The bytes from `start` up to but without `end`, of `size` in all."""

    start: int
    end: int
    size: int

    @property
    def content_range(self) -> str:
        """The header of a 206."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def wanted_range(given: str | None, size: int) -> Range | None:
    """The range that a Range header asks for, or None for the whole.

    Several ranges at once, other units and nonsense get the whole, as the RFC allows. Raises
    RangeNotSatisfiable for a range that has no byte of the file.
    """
    match = _BYTES.fullmatch((given or "").replace(" ", ""))
    if match is None:
        return None
    first, last = match["first"], match["last"]
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= end:
        raise RangeNotSatisfiable(
            f"The range {given} has no byte of the result, which has {size}.",
            {"Content-Range": f"bytes */{size}"},
            size=size,
        )
    return Range(start, end, size)
