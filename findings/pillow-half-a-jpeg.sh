#!/usr/bin/env bash
# Guess: Pillow refuses a JPEG of which pixels are missing, unless LOAD_TRUNCATED_IMAGES allows it.
# What happens: only where the end marker is missing too. With it behind half of the pixels everything
# succeeds, verify() as well, without a warning, and the other half is grey: libjpeg's warnings are
# dropped.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pillow==13.0.0
cd "$folder"
venv/bin/python -W error - <<'PYTHON'
import io

import numpy as np
import PIL
from PIL import Image, ImageFile, features

assert not ImageFile.LOAD_TRUNCATED_IMAGES
print("pillow", PIL.__version__, "libjpeg-turbo", features.version("libjpeg_turbo"))
pixels = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
file = io.BytesIO()
Image.fromarray(pixels).save(file, "JPEG")
half = file.getvalue()[: len(file.getvalue()) // 2]
try:
    Image.open(io.BytesIO(half)).load()
    raise AssertionError("half a file was taken")
except OSError as error:
    print("half of the file:", error)
whole = half + b"\xff\xd9"
Image.open(io.BytesIO(whole)).verify()
found = np.asarray(Image.open(io.BytesIO(whole)))
share = float((found[128:] == 128).mean())
print(f"with an end marker behind: taken, {share:.0%} of the lower half is grey")
assert share > 0.9
PYTHON
