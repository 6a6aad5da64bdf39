"""Convolutions and time embeddings that are computed once when networks are loaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.bundle import Networks
from models.networks.layers import ResnetBlock, TimestepEmbedding, Upsample
from models.networks.unet import FeatureModulation, ModulatedResnetBlock, ModulatedUNet

_TIMESTEPS = 1000
# Of the 3 taps of a 3x3 kernel, which fall on the first and which on the second of the two small
# pixels that the even and the odd large pixel see.
_TAPS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


def wide(tensor: Tensor | None) -> Tensor:
    """A weight to compute with, in float64. None, which a bias may be, is 0."""
    if tensor is None:
        return torch.zeros((), dtype=torch.float64)
    return tensor.detach().to(torch.float64)


def constant(values: Tensor, like: Tensor) -> nn.Parameter:
    """A weight of the dtype and on the device of `like`.

    A parameter, because those are what moves between devices and what is counted.
    """
    values = values.to(device=like.device, dtype=like.dtype)
    return nn.Parameter(values.contiguous(), requires_grad=False)


def _convolution(weight: Tensor, bias: Tensor, like: Tensor) -> nn.Conv2d:
    """A 3x3 convolution with padding 1 of this kernel (out, in, 3, 3), as `constant`."""
    out, channels = weight.shape[:2]
    conv = nn.Conv2d(channels, out, 3, padding=1, device="meta")
    conv.weight, conv.bias = constant(weight, like), constant(bias, like)
    return conv


class PhaseUpsample(nn.Module):
    """Twice the size: nearest neighbours and a 3x3 convolution as one 2x2 convolution.

    Doubled both ways, three neighbouring pixels of the large map are only two of the small one, so
    each of the four places that a small pixel becomes is a 2x2 convolution of the small map: its
    taps are sums of the 3x3 kernel's. 16 products a small pixel instead of 36. The four phases
    share their input, so they are one convolution with four times the channels, and their results
    are interleaved.

    The same as a transposed convolution (kernel 4, stride 2, padding 1) is as little arithmetic,
    but slower at most sizes where it was timed.

    Args:
        conv: 3x3 with padding 1, of the doubled map.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size = conv.kernel_size
        taps = torch.tensor(_TAPS, dtype=torch.float64, device=conv.weight.device)
        phases = torch.einsum("rap,cbq,oipq->rcoiab", taps, taps, wide(conv.weight))
        self.weight = constant(phases.flatten(0, 2), conv.weight)
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
        phases = F.conv2d(x, self.weight, self.bias, padding=(padding, 1))
        n, channels = x.shape[0], self.out_channels
        phases = phases.view(n, 2, 2, channels, height + 1, width + 1)
        # Channels last: whole pixels are interleaved, not numbers.
        out = phases.new_empty((n, height, 2, width, 2, channels))
        for r in range(2):
            for c in range(2):
                # A phase that looks back begins one pixel before one that looks ahead.
                phase = phases[:, r, c, :, r : r + height, c : c + width]
                out[:, :, r, :, c] = phase.permute(0, 2, 3, 1)
        return out.view(n, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def fuse_upsampling(networks: Networks) -> None:
    """UNet and both decoders."""
    for part in (networks.unet, networks.autoencoder, networks.first_stage):
        for owner in [] if part is None else list(part.modules()):
            for name, child in list(owner.named_children()):
                if isinstance(child, Upsample):
                    owner.register_module(name, PhaseUpsample(child.conv))


class FusedModulation(nn.Module):
    """Feature modulation by one convolution of the block's share of the level's activations.

    With n the normalised map before its affine (w, b), the block computes

        (w n + b) (1 + gamma) + beta  =  n (w + w gamma) + (b + b gamma + beta)

    and both brackets are convolutions of the same activations, so they are one convolution. The
    activations come from a convolution of the level's feature, which is one for all its blocks.

    Args:
        modulation: the layers, but for the first convolution.
        start: where the block's channels begin in the level's activations.
    """

    def __init__(self, modulation: FeatureModulation, start: int) -> None:
        super().__init__()
        norm, gamma, beta = modulation.norm, modulation.gamma, modulation.beta
        self.groups, self.eps = norm.num_groups, norm.eps
        self.start, self.stop = start, start + gamma.in_channels
        w, b = wide(norm.weight), wide(norm.bias)
        kernel_w, kernel_b = w[:, None, None, None], b[:, None, None, None]
        weights = [
            kernel_w * wide(gamma.weight),
            kernel_b * wide(gamma.weight) + wide(beta.weight),
        ]
        biases = [w + w * wide(gamma.bias), b + b * wide(gamma.bias) + wide(beta.bias)]
        self.conv = _convolution(torch.cat(weights), torch.cat(biases), gamma.weight)
        """hidden to 2 * channels: the scale's, then the shift's."""

    def forward(self, hidden: Tensor, activations: Tensor) -> Tensor:
        """hidden (n, channels, h, w), activations (n, blocks * hidden, h, w) -> like hidden."""
        scale, shift = self.conv(activations[:, self.start : self.stop]).chunk(2, dim=1)
        out: Tensor = F.group_norm(hidden, self.groups, eps=self.eps) * scale + shift
        return out


def fuse_modulation(networks: Networks) -> None:
    """All residual blocks of the UNet."""
    unet = networks.unet
    level_convs = nn.ModuleList()
    for blocks in _levels(unet):
        convs: list[nn.Conv2d] = []
        start = 0
        for block in blocks:
            modulation = block.modulation
            assert isinstance(modulation, FeatureModulation)
            block.register_module("modulation", FusedModulation(modulation, start))
            convs.append(modulation.shared)
            start += modulation.shared.out_channels
        weight = torch.cat([wide(c.weight) for c in convs])
        bias = torch.cat([wide(c.bias) for c in convs])
        level_convs.append(nn.Sequential(_convolution(weight, bias, convs[0].weight), nn.ReLU()))
    unet.level_convs = level_convs


def _levels(unet: ModulatedUNet) -> list[list[ModulatedResnetBlock]]:
    """The blocks that read each level's feature, finest level first."""
    down, up = list(unet.down_blocks), list(reversed(unet.up_blocks))
    parts: list[list[nn.Module]] = [[a, b] for a, b in zip(down, up, strict=True)]
    parts[-1].append(unet.mid_block)
    return [
        [m for part in level for m in part.modules() if isinstance(m, ModulatedResnetBlock)]
        for level in parts
    ]


class TimeTable(nn.Module):
    """What all residual blocks add at each timestep, in the place of the embedding."""

    def __init__(self, rows: nn.Parameter) -> None:
        super().__init__()
        self.rows = rows
        """(timesteps, channels of all blocks)"""

    def forward(self, timestep: Tensor) -> Tensor:
        """(n,) -> (n, channels)."""
        return self.rows[timestep.long()]


class Columns(nn.Module):
    """A block's own columns of the table's row, in the place of its projection."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, row: Tensor) -> Tensor:
        return row[:, self.start : self.stop]


def fuse_times(networks: Networks) -> None:
    """UNet and time-aware encoder.

    All blocks' projections of the embeddings of all timesteps are less than the layers that make
    them (at full size 25 million numbers against 34), so they become a table, a row a timestep,
    and those layers are dropped. The bias of the convolution before the sum is in it too.
    """
    for part in (networks.unet, networks.encoder):
        blocks = [m for m in part.modules() if isinstance(m, ResnetBlock)]
        like = blocks[0].conv1.weight
        embeddings = _embeddings(part.time_embedding)
        rows = torch.empty(
            (_TIMESTEPS, sum(b.conv1.out_channels for b in blocks)), dtype=like.dtype
        )
        rows = rows.to(like.device)
        start = 0
        for block in blocks:
            stop = start + block.conv1.out_channels
            projection = block.time_emb_proj
            bias = wide(projection.bias) + wide(block.conv1.bias)
            rows[:, start:stop] = F.linear(embeddings, wide(projection.weight), bias)
            block.register_module("time_emb_proj", Columns(start, stop))
            block.conv1.bias = None
            start = stop
        part.register_module("time_embedding", TimeTable(constant(rows, like)))


def _embeddings(embedding: TimestepEmbedding) -> Tensor:
    """Of every timestep, after SiLU, in float64."""
    x = wide(embedding.sinusoids(torch.arange(_TIMESTEPS, device=embedding.linear_1.weight.device)))
    for layer in (embedding.linear_1, embedding.linear_2):
        x = F.silu(F.linear(x, wide(layer.weight), wide(layer.bias)))
    return x
