"""AVIF's boxes (ISO/IEC 14496-12, 4.2); the image's properties as libavif in Pillow reads them."""

from __future__ import annotations

import struct
from typing import IO

from .header import (
    Bytes,
    Header,
    MalformedFile,
    Mode,
    TruncatedFile,
    check_pieces,
    name_of,
    opening,
    valid,
)

__all__ = ["brands", "read"]

MODES: dict[str, Mode] = {"L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}
HIGH_DEPTH, TWELVE_BITS = 0x40, 0x20
"""In the third byte of an AV1 codec configuration (AV1 in ISOBMFF, 2.3)."""


def read(data: Bytes, file: IO[bytes]) -> Header:
    position, pixels, count = 0, False, 0
    while position < len(data):
        count += 1
        check_pieces(count, "boxes")
        length, kind = struct.unpack_from(">I4s", data, position)
        pixels = pixels or kind == b"mdat"
        if length == 1:
            length = struct.unpack_from(">Q", data, position + 8)[0]
        elif length == 0:
            length = len(data) - position
        if length < 8:
            raise MalformedFile(f"the box at byte {position} has a length of {length}")
        if position + length > len(data):
            raise TruncatedFile(f"it ends inside the {name_of(kind)} box at byte {position}")
        position += length
    if not pixels:
        raise TruncatedFile("it has no mdat box, so no pixels")
    # Pillow can be built without it.
    from PIL import _avif

    with opening("AVIF"):
        file.seek(0)
        # Not AvifImageFile, which would unpack every tag of an EXIF block that the decoder,
        # going by the file's own properties, does not heed.
        decoder = _avif.AvifDecoder(file.read(), "auto", 1)
        (width, height), frames, name, _, _, orientation, _ = decoder.get_info()
        mode = MODES[name]
    return Header("AVIF", width, height, frames, valid(orientation), mode, _depth(data))


def _depth(data: Bytes) -> int:
    """The bits of a channel: of the first codec configuration, which is the picture's."""
    start = data.find(b"av1C")
    flags = data[start + 6] if 0 <= start < len(data) - 6 else 0
    if flags & HIGH_DEPTH:
        return 12 if flags & TWELVE_BITS else 10
    return 8


def brands(head: bytes) -> set[bytes]:
    """The major and compatible brands that fit into the first 32 bytes of an ftyp box."""
    return {head[8:12]} | {head[start : start + 4] for start in range(16, len(head), 4)}
