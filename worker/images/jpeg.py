"""JPEG files with a blemish that costs no pixel, which libjpeg warns of as it does of lost ones.

Only the first warning of a file is told, so a file cannot just be read again with warnings allowed:
the blemish would hide damage behind it. It is taken out instead, and the rest is read as strictly
as before. Segments and markers: ITU-T T.81, annex B.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["ends_with_stray_bytes", "is_blemish", "without_blemishes"]

_BLEMISH = re.compile(r"extraneous bytes before marker|unknown JFIF revision number")
_AT_THE_END = re.compile(r"extraneous bytes before marker 0xd9$")
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_BEHIND_A_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END, _SCAN, _RESTARTS, _APP0 = 0xD9, 0xDA, 0xDD, 0xE0
_ALONE = {0x01, *range(0xD0, 0xDA)}
"""Markers without a segment."""


def is_blemish(reason: str) -> bool:
    """Whether libjpeg's message may be about something that costs no pixel."""
    return _BLEMISH.search(reason) is not None


def ends_with_stray_bytes(reason: str, data: bytes) -> bool:
    """Whether the message is of bytes between the last scan and the end, and of nothing else.

    They are the last thing there is, so they hide nothing; but where a scan has intervals, they may
    be one whose marker was lost.
    """
    if _AT_THE_END.search(reason) is None:
        return False
    return all(marker != _RESTARTS for marker, _, _ in _segments(data))


def without_blemishes(data: bytes) -> bytes:
    """The file without bytes between its segments, and with JFIF's revision 1 in place of others,
    which mean the same to a decoder. What follows a scan stays as it is."""
    kept, behind = bytearray(data[:2]), 2
    for marker, start, behind in _segments(data):
        segment = bytearray(data[start:behind])
        if marker == _APP0 and segment[2:7] == b"JFIF\0" and len(segment) > 7:
            segment[7] = 1
        kept += bytes((0xFF, marker)) + segment
    return bytes(kept + data[behind:])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, and where what belongs to it begins and ends: of a scan up to the next marker."""
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, start = data[found.end() - 1], found.end()
        at = start
        if marker not in _ALONE:
            at += int.from_bytes(data[start : start + 2], "big")
        if marker == _SCAN:
            behind = _BEHIND_A_SCAN.search(data, at)
            at = behind.start() if behind is not None else len(data)
        yield marker, start, at
        if marker == _END:
            return
