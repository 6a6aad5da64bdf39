#!/usr/bin/env bash
# Guess: the mean of two equal tensors is that tensor, bit for bit: a float's double is exact, and so
# is half of that. So averaging the weights of two runs leaves what neither trained as it was.
# What happens: a sum begins at +0, and -0 + 0 is +0. Every -0 changes its sign, torch.equal sees
# nothing of it, and a digest of the weights is another. lerp and (a + b) / 2 keep the sign.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import hashlib

import torch

print("torch", torch.__version__)


def digest(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:12]


# Half-precision weights: what is below 3e-8 is rounded to a zero that keeps its sign.
weights = (torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 1e-7).half().float()
negative = int(((weights == 0) & weights.signbit()).sum())
means = {
    "stack and mean": torch.stack([weights, weights]).mean(dim=0),
    "lerp": torch.lerp(weights, weights, 0.5),
    "(a + b) / 2": (weights + weights) / 2,
}
print("weights:", digest(weights), f"with {negative} values of -0")
same = {}
for name, mean in means.items():
    assert torch.equal(mean, weights), name
    same[name] = digest(mean) == digest(weights)
    print(f"{name}: {digest(mean)}, equal, {'the same' if same[name] else 'other'} bits")
assert negative > 100, negative
assert same == {"stack and mean": False, "lerp": True, "(a + b) / 2": True}, same
PYTHON
