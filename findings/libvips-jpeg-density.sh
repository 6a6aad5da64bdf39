#!/usr/bin/env bash
# Guess: a JPEG that libvips writes has its pixels per inch in the JFIF header, with which such a file
# begins, and whatever `keep` says of metadata, they stay: they belong to the image.
# What happens: there is no JFIF header at all. The density is in EXIF alone, which is written even for
# an image that has had none. `keep="icc"` leaves EXIF out, and the density goes with it; PNG and TIFF
# keep theirs. Of two densities in EXIF, Pillow's `info["dpi"]` then tells the one across for both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'pyvips[binary]==3.2.0' pyvips-binary==8.18.7 pillow==13.0.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import io

import PIL
import pyvips
from PIL import Image

print("pyvips", pyvips.__version__, "libvips", ".".join(str(pyvips.version(i)) for i in range(3)))
print("pillow", PIL.__version__)
image = pyvips.Image.black(8, 8, bands=3).copy(
    interpretation="srgb", xres=300 / 25.4, yres=150 / 25.4
)


def density(data: bytes) -> object:
    with Image.open(io.BytesIO(data)) as file:
        found = file.info.get("dpi")
        return found and tuple(round(float(side)) for side in found)


found = {}
for keep in ("all", "icc"):
    jpeg = image.jpegsave_buffer(keep=keep)
    assert b"JFIF" not in jpeg
    found["jpeg", keep] = density(jpeg)
    found["png", keep] = density(image.pngsave_buffer(keep=keep))
    found["tiff", keep] = density(image.tiffsave_buffer(keep=keep))
    print(keep, found["jpeg", keep], found["png", keep], found["tiff", keep])
with Image.open(io.BytesIO(image.jpegsave_buffer(keep="all"))) as file:
    exif = file.getexif()
    print("EXIF", exif[282], exif[283])
    assert (round(exif[282]), round(exif[283])) == (300, 150)
assert found["jpeg", "all"] == (300, 300)
assert found["jpeg", "icc"] is None
assert found["png", "icc"] == found["tiff", "icc"] == (300, 150)
PYTHON
