#!/usr/bin/env bash
# Guess: x + y and y + x are the same to the bit, so exchanging them changes nothing of a network.
# What happens: the numbers are equal, their layout in memory is that of the first operand. The next
# convolution takes another kernel for it, and there the last bits differ. A network whose results
# are kept by their hash changes with the order of a skip connection's sum.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch

print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
torch.manual_seed(0)
torch.set_num_threads(1)
image = torch.randn(1, 64, 32, 32)
# As attention gives it back: tokens (1, 32 * 32, 64) seen as a map.
tokens = torch.randn(1, 32 * 32, 64).view(1, 32, 32, 64).permute(0, 3, 1, 2)
conv = torch.nn.Conv2d(64, 64, 3, padding=1)
with torch.inference_mode():
    first, second = image + tokens, tokens + image
    print("equal", torch.equal(first, second), "strides", first.stride(), second.stride())
    results = conv(first), conv(second)
difference = (results[0] - results[1]).abs()
print(f"after a convolution {int((difference > 0).sum())} of {difference.numel()} numbers differ, "
      f"by at most {float(difference.max()):.1e}")
assert torch.equal(first, second)
assert first.stride() != second.stride()
PYTHON
