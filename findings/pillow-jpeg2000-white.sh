#!/usr/bin/env bash
# Guess: of a JPEG 2000 with colours of 16 bits Pillow gives the upper 8 bits, rounded or cut off.
# What happens: it rounds, and what rounds up to 256 becomes 0: white is black, as is all from 65408 on.
# Greyscale of 16 bits stays right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  numpy==2.4.6 pillow==13.0.0 imagecodecs==2026.3.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import io

import imagecodecs
import numpy as np
import PIL
from PIL import Image

print("pillow", PIL.__version__)
levels = np.array([0, 32768, 65000, 65407, 65408, 65535], np.uint16)
colours = np.tile(levels[None, :, None], (6, 1, 3))


def by_pillow(pixels):
    data = imagecodecs.jpeg2k_encode(pixels, reversible=True, level=0)
    assert np.array_equal(imagecodecs.jpeg2k_decode(data), pixels)
    image = Image.open(io.BytesIO(data))
    return image.mode, np.asarray(image)


mode, grey = by_pillow(colours[..., 0].copy())
assert np.array_equal(grey[0], levels)
print("levels    ", levels.tolist())
mode, found = by_pillow(colours)
print("as", mode, "   ", found[0, :, 0].tolist())
assert found[0, :, 0].tolist() == [0, 128, 254, 255, 0, 0]
PYTHON
