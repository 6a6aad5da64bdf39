"""Reads the weights of convolutions from a model of ncnn: a `.param` text and its `.bin`.

Only what a chain of convolutions needs. In the `.bin` each convolution is a 4-byte tag, its
weights (float32 after tag 0; float16, filled up to 4 bytes, after 0x01306B47) and its bias in
float32, in the order of the `.param`'s lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.evaluation.errors import BaselineUnavailable

__all__ = ["Convolution", "convolutions"]

_MAGIC = "7767517"
_FLOAT32, _FLOAT16 = 0, 0x01306B47
# Of a Convolution's line: output channels, kernel side, whether it has a bias, count of weights.
_CHANNELS, _KERNEL, _BIAS, _WEIGHTS = "0", "1", "5", "6"


@dataclass(frozen=True)
class Convolution:
    """One layer's numbers, float32."""

    name: str
    weight: Tensor
    """(out, in, kernel, kernel)"""
    bias: Tensor
    """(out,)"""


def convolutions(param: str, data: bytes) -> list[Convolution]:
    """All convolutions, in the graph's order.

    Args:
        param: the text of the `.param` file.
        data: the content of the `.bin` file.

    Raises:
        BaselineUnavailable: it is no such model, or text and data do not belong together.
    """
    lines = param.split("\n")
    if lines[0].strip() != _MAGIC:
        raise BaselineUnavailable(
            f"The model begins with {lines[0][:20]!r}, but ncnn's is {_MAGIC}."
        )
    found, at = [], 0
    for line in lines[2:]:
        words = line.split()
        if not words or words[0] != "Convolution":
            continue
        given = dict(word.split("=", 1) for word in words if "=" in word)
        layer, at = _layer(words[1], given, data, at)
        found.append(layer)
    if at != len(data):
        raise BaselineUnavailable(
            f"The model's convolutions take {at} bytes, but its data has {len(data)}."
        )
    return found


def _layer(name: str, given: dict[str, str], data: bytes, at: int) -> tuple[Convolution, int]:
    """The layer whose tag stands at byte `at`, and where the next one stands."""
    count, channels, kernel = (int(given[key]) for key in (_WEIGHTS, _CHANNELS, _KERNEL))
    if given.get(_BIAS) != "1" or count % (channels * kernel**2):
        raise BaselineUnavailable(f"The convolution {name} is of a kind that is not read.")
    tag = int.from_bytes(data[at : at + 4], "little")
    if tag not in (_FLOAT32, _FLOAT16):
        raise BaselineUnavailable(
            f"The weights of {name} have the tag {tag:#x}, but only 0 and {_FLOAT16:#x} are read."
        )
    kind, width = ("<f4", 4) if tag == _FLOAT32 else ("<f2", 2)
    begin = at + 4
    filled = begin + width * count + -(width * count) % 4
    end = filled + 4 * channels
    if end > len(data):
        raise BaselineUnavailable(f"The model's data ends within {name}.")
    weight = np.frombuffer(data, kind, count, begin).astype(np.float32)
    bias = np.frombuffer(data, "<f4", channels, filled).copy()
    shape = (channels, -1, kernel, kernel)
    return Convolution(name, torch.from_numpy(weight.reshape(shape)), torch.from_numpy(bias)), end
