#!/usr/bin/env bash
# Guess: the backward pass of a PReLU whose slopes are frozen computes the gradient of its input and
# nothing else, as that of a frozen convolution does.
# What happens: one kernel makes both, and for the slopes a tensor as large as the input, which is
# thrown away. lerp(relu(x), x, slope) is the same function, for slopes of any size, without it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

print("torch", torch.__version__)


class Record(TorchDispatchMode):
    """The shapes of all that backward functions give."""

    def __init__(self):
        super().__init__()
        self.shapes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if "backward" in str(function):
            made = result if isinstance(result, tuple) else (result,)
            self.shapes[str(function)] = [None if t is None else tuple(t.shape) for t in made]
        return result


def backward(module, x):
    out = module(x)
    with Record() as record:
        out.backward(torch.ones_like(out))
    return record.shapes


x = torch.randn(2, 8, 16, 16, requires_grad=True)
convolution = backward(nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False), x)
frozen, learning = (backward(nn.PReLU(8).requires_grad_(learns), x) for learns in (False, True))
print("frozen convolution:", convolution)
print("frozen PReLU:", frozen)
print("learning PReLU:", learning)
assert convolution == {"aten.convolution_backward.default": [(2, 8, 16, 16), None, None]}, convolution
assert frozen == learning == {"aten._prelu_kernel_backward.default": [(2, 8, 16, 16)] * 2}, frozen

slopes = torch.tensor([-1.5, -0.2, 0.0, 0.1, 0.25, 0.9, 1.0, 1.9])
other = torch.lerp(F.relu(x), x, slopes[:, None, None])
assert torch.allclose(F.prelu(x, slopes), other, atol=1e-6)
print("lerp(relu(x), x, slope): the same")
PYTHON
