#!/usr/bin/env bash
# Guess: libvips writes an EXIF chunk of WebP as the format has it: the block, which begins with II or
# MM as a TIFF does.
# What happens: the chunk begins with "Exif\0\0", which belongs into a JPEG's segment. exiftool says
# "Improper EXIF header". A block that had no prefix in the file that was read gets one; PNG, from the
# same image, has none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'pyvips[binary]==3.2.0' pyvips-binary==8.18.7 pillow==13.0.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import io
import struct

import PIL
import pyvips
from PIL import Image

print("pyvips", pyvips.__version__, "libvips", ".".join(str(pyvips.version(i)) for i in range(3)))


def exif_chunk(data: bytes) -> bytes:
    position = 12
    while position < len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    raise AssertionError("no EXIF chunk")


def png_chunk(data: bytes) -> bytes:
    place = data.index(b"eXIf")
    length = struct.unpack_from(">I", data, place - 4)[0]
    return data[place + 4 : place + 4 + length]


exif = Image.Exif()
exif[315] = "An artist"
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "WEBP", exif=exif)
before = exif_chunk(file.getvalue())
image = pyvips.Image.new_from_buffer(file.getvalue(), "")
after = exif_chunk(image.webpsave_buffer(keep="exif"))
png = png_chunk(image.pngsave_buffer(keep="exif"))
print("pillow", PIL.__version__, before[:10])
print("libvips, webp", after[:10])
print("libvips, png", png[:10])
assert before[:2] in (b"II", b"MM")
assert after.startswith(b"Exif\0\0")
assert png[:2] in (b"II", b"MM")
PYTHON
