#!/usr/bin/env bash
# Guess: an EXIF block that Pillow has read comes out as it was when the image is saved with it; handed
# over as bytes, it is written as it is.
# What happens: a text that is not ASCII, as cameras and exiftool write names in UTF-8, becomes question
# marks, one a byte, without a warning. Bytes go into JPEG, PNG and WebP as they are, and into AVIF too,
# unless they say an orientation: then the block is written anew, and the names are lost there as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import io
import struct

import PIL
from PIL import Image

print("pillow", PIL.__version__)
NAME = "Müller".encode()
ARTIST, ORIENTATION = 315, 274


def block(turn: int) -> bytes:
    """EXIF with an artist, and with an orientation unless that is 0."""
    entries = [struct.pack("<HHIHH", ORIENTATION, 3, 1, turn, 0)] if turn else []
    behind = 8 + 2 + 12 * (len(entries) + 1) + 4
    entries.append(struct.pack("<HHII", ARTIST, 2, len(NAME) + 1, behind))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    return head + b"".join(entries) + bytes(4) + NAME + b"\0"


def saved(format: str, exif: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format, exif=exif)
    return file.getvalue()


for format in ("JPEG", "PNG", "WEBP", "AVIF"):
    kept = {}
    for turn in (0, 1):
        exif = b"Exif\0\0" + block(turn)
        kept["bytes", turn] = NAME in saved(format, exif)
        image = Image.open(io.BytesIO(saved("JPEG", exif)))
        kept["read", turn] = NAME in saved(format, image.getexif())
    print(f"{format:5}", kept)
    assert not kept["read", 0]
    assert not kept["read", 1]
    assert kept["bytes", 0]
    assert kept["bytes", 1] == (format != "AVIF")
assert b"M??ller" in saved("AVIF", b"Exif\0\0" + block(1))
PYTHON
