#!/usr/bin/env bash
# Guess: `getexif()` of an opened image reads metadata, so a file's orientation can be asked for
# without its pixels; a cut-off file tells it as well, since metadata stands in front.
# What happens: for a PNG without eXIf ahead of its pixels, as nearly all are, `getexif()` decodes the
# whole image, because the chunk may also stand behind; a file whose pixels are cut off raises. Of
# JPEG, TIFF and BMP it reads a few more bytes at most.
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
turned = Image.Exif()
turned[0x0112] = 6
share = {}
for name, exif in (("PNG", None), ("PNG", turned), ("JPEG", None), ("TIFF", None), ("BMP", None)):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name, **({} if exif is None else {"exif": exif}))
    counted = Counted(file.getvalue())
    image = Image.open(counted)
    before = counted.count
    orientation = image.getexif().get(0x0112)
    label = name if exif is None else f"{name}, eXIf"
    share[label] = counted.count / len(file.getvalue())
    read = f"opened: {before:4} bytes; asked for its orientation ({orientation}): {counted.count}"
    print(f"{label:9} {read}")
    if label == "PNG":
        whole = file.getvalue()
assert share["PNG"] >= 1
assert all(value < 0.01 for label, value in share.items() if label != "PNG")
cut = Image.open(io.BytesIO(whole[:100_000]))
print("a PNG that is cut off, opened:", cut.size)
try:
    cut.getexif()
except OSError as error:
    print("asked for its orientation:", error)
else:
    raise SystemExit("getexif leaves the pixels alone now")
PYTHON
