#!/usr/bin/env bash
# Guess: where the image of a GIF leaves part of its screen free, Pillow gives what viewers show:
# nothing, transparent.
# What happens: an opaque colour, the palette's entry that the header calls the background; and the
# file's mode has no opacity.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import io

import PIL
from PIL import Image

print("pillow", PIL.__version__)
image = Image.new("P", (4, 4), 1)
image.putpalette([10, 20, 30, 200, 100, 50])
file = io.BytesIO()
image.save(file, "GIF", optimize=False)
data = file.getvalue()
table = 3 * 2 ** (1 + (data[10] & 7))
at = data.index(b",", 13 + table)
# A screen of 8 x 8, and the image in the middle of it.
data = data[:6] + b"\x08\0\x08\0" + data[10 : at + 1] + b"\2\0\2\0" + data[at + 5 :]
found = Image.open(io.BytesIO(data))
print("size", found.size, "mode", found.mode, "info", sorted(found.info))
corner, middle = (found.convert("RGBA").getpixel(place) for place in ((0, 0), (4, 4)))
print("corner", corner, "middle", middle)
assert "transparency" not in found.info
assert middle == (200, 100, 50, 255)
assert corner == (10, 20, 30, 255)
PYTHON
