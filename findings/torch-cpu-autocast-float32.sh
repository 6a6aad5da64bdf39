#!/usr/bin/env bash
# Guess: autocast keeps softmax, norms, exponentials and sums in float32 on a processor as it does on
# a GPU; what copies numbers, such as padding, keeps their type.
# What happens: on a processor they are computed in bfloat16. A padding that reflects or repeats the
# border gives float32, one with zeros does not; and a bicubic reduction with antialiasing, which
# takes float32 there, is an error for bfloat16. A training that is stable on a GPU sums its losses
# in eight bits here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from torch.nn import functional as F

print("torch", torch.__version__)
x = torch.rand(1, 4, 8, 8).bfloat16() + 1
functions = {
    "softmax": lambda: F.softmax(x, 1),
    "group norm": lambda: F.group_norm(x, 2),
    "exp": lambda: x.exp(),
    "log": lambda: x.log(),
    "sum": lambda: x.sum(),
    "padding with zeros": lambda: F.pad(x, (1, 1, 1, 1)),
    "padding that reflects": lambda: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "squared error": lambda: F.mse_loss(x, x),
}
with torch.autocast("cpu", torch.bfloat16):
    types = {name: str(function().dtype).removeprefix("torch.") for name, function in functions.items()}
    try:
        F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
        reduction = "works"
    except NotImplementedError as error:
        reduction = f"NotImplementedError: {error}"
for name, kind in types.items():
    print(f"{name}: {kind}")
print("antialiased reduction:", reduction)
wide = {name for name, kind in types.items() if kind == "float32"}
assert wide == {"padding that reflects", "squared error"}, wide
assert reduction != "works"
PYTHON
