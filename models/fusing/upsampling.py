"""Nearest neighbours and a 3x3 convolution as one 2x2 convolution.

Doubled both ways, three neighbouring cells of the large map are only two of the small one, so each
of the four places a small cell becomes is a 2x2 convolution of the small map: its taps are sums of
the 3x3 kernel's. 16 products a small cell instead of 36. The four share their input, so they are
one convolution with four times the channels, and their results are interleaved.

The same as a transposed convolution (kernel 4, stride 2, padding 1) is as little arithmetic, but
slower at most sizes where it was timed.
"""

from __future__ import annotations

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from models.fusing.weights import constant, wide
from models.networks.bundle import Networks

__all__ = ["PhaseUpsample", "fuse_upsamplers", "fuse_upsampling"]

# Of the 3 taps of a 3x3 kernel, which fall on the first and which on the second of the two small
# cells that the even and the odd large cell see.
_TAPS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


class PhaseUpsample(nn.Module):
    """Twice the size: a 2x2 convolution for each of the four phases.

    Args:
        conv: 3x3 with padding 1, of the doubled map.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.weight = constant(phases(conv.weight).flatten(0, 2), conv.weight)
        """(4 * out, in, 2, 2): row phase, column phase, channel."""
        # The phases have one bias, but a convolution wants one for each of its channels.
        self.bias = constant(wide(conv.bias).expand(conv.out_channels).repeat(4), conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, 2h, 2w)."""
        return self.rows(x, padding=1)

    def rows(self, x: Tensor, *, padding: int) -> Tensor:
        """Rows (n, in, h, w) -> (n, out, 2 * (h + 2 * padding - 2), 2w).

        `padding` is 1 where zeros stand above and below the rows, 0 where the first and the last
        are only read.
        """
        height, width = x.shape[2] + 2 * padding - 2, x.shape[3]
        taken = F.conv2d(x, self.weight, self.bias, padding=(padding, 1))
        n, channels = x.shape[0], self.out_channels
        phase = taken.view(n, 2, 2, channels, height + 1, width + 1)
        # Channels last: whole cells are interleaved, not numbers.
        out = taken.new_empty((n, height, 2, width, 2, channels))
        for r in range(2):
            for c in range(2):
                # A phase that looks back begins one cell before one that looks ahead.
                own = phase[:, r, c, :, r : r + height, c : c + width]
                out[:, :, r, :, c] = own.permute(0, 2, 3, 1)
        return out.view(n, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def phases(weight: Tensor) -> Tensor:
    """A 3x3 kernel (out, in, 3, 3) as float64 (2, 2, out, in, 2, 2), row and column phase first."""
    taps = torch.tensor(_TAPS, dtype=torch.float64, device=weight.device)
    return torch.einsum("rap,cbq,oipq->rcoiab", taps, taps, wide(weight))


def fuse_upsampling(networks: Networks) -> None:
    """UNet and both decoders."""
    for part in (networks.unet, networks.autoencoder, networks.first_stage):
        if part is not None:
            fuse_upsamplers(part)


@torch.inference_mode(False)
@torch.no_grad()
def fuse_upsamplers(part: nn.Module) -> None:
    """All of one network."""
    for owner in list(part.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, Upsample2D) and isinstance(child.conv, nn.Conv2d):
                owner.register_module(name, PhaseUpsample(child.conv))
