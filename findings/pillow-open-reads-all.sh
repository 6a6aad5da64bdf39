#!/usr/bin/env bash
# Guess: Image.open reads a file's header and leaves the pixels until they are asked for, so the size
# of a large upload can be looked at for next to nothing, whatever its format.
# What happens: of PNG, JPEG, TIFF, GIF, BMP and JPEG 2000 it reads a few hundred bytes, of WebP and
# AVIF the whole file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import io

import numpy as np
import PIL
from PIL import Image


class Counted(io.BytesIO):
    count = 0

    def read(self, *size):
        data = super().read(*size)
        self.count += len(data)
        return data


print("pillow", PIL.__version__)
pixels = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
share = {}
for name in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "JPEG2000", "WEBP", "AVIF"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name)
    counted = Counted(file.getvalue())
    size = Image.open(counted).size
    assert size == (1500, 1500)
    total = len(file.getvalue())
    share[name] = counted.count / total
    print(f"{name:9} {total:8} bytes, read before the size is known: {counted.count}")
assert all(share[name] < 0.01 for name in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "JPEG2000"))
assert share["WEBP"] >= 1 and share["AVIF"] >= 1
PYTHON
