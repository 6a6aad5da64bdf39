"""Real-ESRGAN's two generators (arXiv 2107.10833), and the packaged ncnn files they are read from.

RRDBNet is ESRGAN's (arXiv 1809.00219, section 3.1): the teacher, and a baseline. The compact one,
SRVGGNet, is what the decoder of the compact autoencoder starts from, and a baseline too.

A model of ncnn is a `.param` text and its `.bin`; only what a chain of convolutions needs is read.
In the `.bin` each convolution is a 4-byte tag, its weights (float32 after tag 0; float16, filled up
to 4 bytes, after 0x01306B47) and its bias in float32, in the order of the `.param`'s lines; each
PReLU is its slopes in float32, without a tag.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.autoencoder import ResidualInResidual
from models.networks.compact import CompactDecoder
from training.config import ModelFileUnreadable

__all__ = ["CompactNet", "Layer", "RRDBNet", "assign", "layers", "read_model", "start_decoder"]


class RRDBNet(nn.Module):
    """Residual-in-residual dense blocks, then twice nearest enlargement by 2 and a convolution.

    Args:
        blocks: how many residual-in-residual blocks; 23 in Real-ESRGAN x4plus.
        width: channels.
        growth: channels that each dense convolution adds.
    """

    def __init__(self, blocks: int = 23, width: int = 64, growth: int = 32) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        # In the order in which an image goes through them: `from_model` counts on it.
        self.enter = conv(3, width)
        self.body = nn.Sequential(*(ResidualInResidual(width, growth) for _ in range(blocks)))
        self.trunk = conv(width, width)
        self.up = nn.ModuleList([conv(width, width), conv(width, width)])
        self.last = conv(width, width)
        self.leave = conv(width, 3)

    @classmethod
    def from_model(cls, path: Path, name: str = "realesrgan-x4plus") -> RRDBNet:
        """Frozen, with the weights of an exported graph.

        Raises:
            ModelFileUnreadable: it is another network's.
        """
        network = cls()
        assign([m for m in network.modules() if isinstance(m, nn.Conv2d)], read_model(path, name))
        return network.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] -> (n, 3, 4h, 4w), nominally in [0, 1]."""
        x = self.enter(image)
        x = x + self.trunk(self.body(x))
        for conv in self.up:
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        out: Tensor = self.leave(F.leaky_relu(self.last(x), 0.2))
        return out


class CompactNet(nn.Module):
    """SRVGGNet: convolutions at the input's size, then interleaved to four times of it.

    Args:
        width: channels.
        count: convolutions between the first and the last.
    """

    def __init__(self, width: int = 64, count: int = 32) -> None:
        super().__init__()
        inner: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(count):
            inner += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        self.layers = nn.Sequential(*inner, nn.Conv2d(width, 48, 3, padding=1))

    @classmethod
    def from_model(cls, path: Path, name: str = "realesrgan-x4fast") -> CompactNet:
        """As of `RRDBNet`."""
        network = cls()
        assign(list(network.layers), read_model(path, name))
        return network.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """As of `RRDBNet`."""
        enlarged = F.interpolate(image, scale_factor=4, mode="nearest")
        return F.pixel_shuffle(self.layers(image), 4) + enlarged


@torch.no_grad()
def start_decoder(decoder: CompactDecoder, network: CompactNet) -> None:
    """The decoder's layers at a quarter of the size become the network's, all but its last;
    the deep layers beside them add nothing at first.

    Raises:
        ModelFileUnreadable: they have other widths or counts.
    """
    ours: list[nn.Module] = [decoder.picture_in, decoder.activation]
    for layer in decoder.layers:
        ours += list(layer.children())
    theirs = list(network.layers)[:-1]
    width = cast("nn.Conv2d", network.layers[0]).out_channels
    if (len(ours), decoder.picture_in.out_channels) != (len(theirs), width):
        raise ModelFileUnreadable(
            f"The decoder has {len(ours)} layers of {decoder.picture_in.out_channels} channels at "
            f"a quarter of the size, but the network to start from has {len(theirs)} of {width}."
        )
    for mine, other in zip(ours, theirs, strict=True):
        mine.load_state_dict(other.state_dict())
    nn.init.zeros_(decoder.rise.weight)
    assert decoder.rise.bias is not None
    nn.init.zeros_(decoder.rise.bias)


_MAGIC = "7767517"
_FLOAT32, _FLOAT16 = 0, 0x01306B47
# Of a Convolution's line: output channels, kernel side, whether it has a bias, count of weights.
_CHANNELS, _KERNEL, _BIAS, _WEIGHTS = "0", "1", "5", "6"


Layer = tuple[str, list[Tensor]]
"""Name; of a convolution the weight (out, in, kernel, kernel) and the bias (out,), of a PReLU its
slopes (channels,): float32."""


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
    found: list[Layer] = []
    at = 0

    def take(name: str, count: int, kind: str) -> Tensor:
        """The next numbers; they end at a multiple of 4 bytes."""
        nonlocal at
        size = count * np.dtype(kind).itemsize
        begin, at = at, at + size + -size % 4
        if at > len(data):
            raise ModelFileUnreadable(f"The model's data ends within {name}.")
        return torch.from_numpy(np.frombuffer(data, kind, count, begin).astype(np.float32))

    for line in lines[2:]:
        kind, name, *words = line.split() or ("", "")
        if kind not in ("Convolution", "PReLU"):
            continue
        values = dict(word.split("=", 1) for word in words if "=" in word)
        channels = int(values[_CHANNELS])
        if kind == "PReLU":
            found.append((name, [take(name, channels, "<f4")]))
            continue
        count, kernel = int(values[_WEIGHTS]), int(values[_KERNEL])
        if values.get(_BIAS) != "1" or count % (channels * kernel**2):
            raise ModelFileUnreadable(f"The convolution {name} is of a kind that is not read.")
        tag = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if tag not in (_FLOAT32, _FLOAT16):
            raise ModelFileUnreadable(
                f"The weights of {name} have the tag {tag:#x}, but only 0 and {_FLOAT16:#x} are "
                "read."
            )
        weight = take(name, count, "<f4" if tag == _FLOAT32 else "<f2")
        shape = (channels, -1, kernel, kernel)
        found.append((name, [weight.view(shape), take(name, channels, "<f4")]))
    if at != len(data):
        raise ModelFileUnreadable(
            f"The model's layers take {at} bytes, but its data has {len(data)}."
        )
    return found


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
    for module, (name, tensors) in zip(modules, found, strict=True):
        for parameter, tensor in zip(module.parameters(), tensors, strict=True):
            if parameter.shape != tensor.shape:
                raise ModelFileUnreadable(
                    f"The layer {name} has the shape {tuple(tensor.shape)}, "
                    f"but this network has {tuple(parameter.shape)} in its place."
                )
            parameter.copy_(tensor)
