#!/usr/bin/env bash
# Guess: a file that was replaced since it was last opened is read anew.
# What happens: libvips remembers the operation by the file's name. `new_from_file` of a file that was
# replaced gives the image of before, size and all, in the same process. `revalidate=True` reads it
# anew, and the next replacement needs it again. A buffer of the file's bytes is never mistaken.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'pyvips[binary]==3.2.0' pyvips-binary==8.18.7
cd "$folder"
venv/bin/python - <<'PYTHON'
import os
from pathlib import Path

import pyvips

print("pyvips", pyvips.__version__, "libvips", ".".join(str(pyvips.version(i)) for i in range(3)))


def replace(level: int, side: int) -> None:
    """A grey image of that side, put in the other's place as careful programs do."""
    image = (pyvips.Image.black(side, side) + level).cast("uchar")
    Path("image.tmp").write_bytes(image.pngsave_buffer())
    os.replace("image.tmp", "image.png")


def looked_at(image: pyvips.Image) -> tuple[int, float]:
    return image.width, image.avg()


replace(10, 8)
first = looked_at(pyvips.Image.new_from_file("image.png"))
replace(200, 16)
second = looked_at(pyvips.Image.new_from_file("image.png"))
buffer = looked_at(pyvips.Image.new_from_buffer(Path("image.png").read_bytes(), ""))
revalidated = looked_at(pyvips.Image.new_from_file("image.png", revalidate=True))
replace(90, 32)
third = looked_at(pyvips.Image.new_from_file("image.png"))
print("first", first)
print("replaced", second, "from a buffer", buffer, "revalidated", revalidated)
print("replaced again", third)
assert first == second == (8, 10.0)
assert buffer == revalidated == third == (16, 200.0)
PYTHON
