#!/usr/bin/env bash
# Guess: who reads a safetensors file tensor by tensor and drops each before the next needs memory for
# the largest tensor.
# What happens: the file is mapped, and its pages that were read count as memory of the process while
# it is open: resident memory grows to the size of the file. Opened anew now and then it does not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 safetensors==0.8.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
import safetensors
from safetensors.numpy import save_file

print("safetensors", safetensors.__version__)
save_file({f"part.{n}": np.zeros((8, 1024, 1024), np.float32) for n in range(10)}, "file")
PYTHON
venv/bin/python - <<'PYTHON'
import re

from safetensors import safe_open


def resident() -> int:
    """MiB of the process."""
    with open("/proc/self/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) // 1024


before = resident()
with safe_open("file", "numpy") as file:
    for number in range(10):
        tensor = file.get_tensor(f"part.{number}")
        del tensor
    kept = resident() - before
print(f"320 MiB in ten tensors, open all the time: {kept} MiB more")
closed = resident() - before
most = 0
for number in range(10):
    with safe_open("file", "numpy") as file:
        tensor = file.get_tensor(f"part.{number}")
        del tensor
        most = max(most, resident() - before)
print(f"closed: {closed} MiB more; opened anew for each: {most} MiB more at most")
assert kept > 300
assert closed < 60 and most < 100
PYTHON
