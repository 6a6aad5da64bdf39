#!/usr/bin/env bash
# Guess: importing one layer of diffusers costs about what that layer's code needs, which is torch.
# What happens: the module of one residual block imports the compiler of torch, transformers where it
# is installed, and with them more modules than torch itself has loaded; the import takes longer than
# torch's own. A process that only computes with the layer pays for it at every start.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys
import time

start = time.perf_counter()
import torch

alone, seconds = set(sys.modules), time.perf_counter() - start
compiler_before = "torch._dynamo" in sys.modules
start = time.perf_counter()
from diffusers.models.resnet import ResnetBlock2D

more, seconds_more = set(sys.modules) - alone, time.perf_counter() - start
import diffusers

print("torch", torch.__version__, "diffusers", diffusers.__version__)
print(f"torch: {len(alone)} modules, {seconds:.1f} s")
print(f"then {ResnetBlock2D.__name__}: {len(more)} modules, {seconds_more:.1f} s")
print(sum(name.startswith("torch.") for name in more), "of them are torch's own, its compiler:")
print("torch._dynamo", "before", compiler_before, "after", "torch._dynamo" in sys.modules)
assert not compiler_before
assert "torch._dynamo" in sys.modules
assert len(more) > 0.5 * len(alone)
PYTHON
