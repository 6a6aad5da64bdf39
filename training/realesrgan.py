"""Real-ESRGAN's two generators (arXiv 2107.10833), read from packages that carry their weights.

RRDBNet is ESRGAN's (arXiv 1809.00219, section 3.1): the teacher, and a baseline. The compact one,
SRVGGNet, is what the decoder of the compact autoencoder starts from, and a baseline too.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.compact import CompactDecoder
from models.networks.fusion import ResidualInResidual
from training.errors import ModelFileUnreadable
from training.ncnn import assign, read_model

__all__ = ["CompactNet", "RRDBNet", "start_decoder"]


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
