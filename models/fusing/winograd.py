"""3x3 convolutions by Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308).

m x m neighbouring results of a 3x3 kernel depend on a square of (m + 2)^2 numbers. Both taken to
another basis, the convolution becomes as many products, one a place of the square, which over all
channels and squares of a map are matrix products: 36 for 16 results with m = 4 instead of 144, 16
for 4 with m = 2 instead of 36. The kernel is taken there once, when the network is loaded.

Exact but for rounding, which stays near that of the convolution itself with these small squares.
It is for float32 on processors, whose arithmetic is what takes the time: in half precision the
other basis would cost the few digits that there are, and GPUs compute in half precision.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.fusing.layers import constant, wide
from models.memory import in_words
from models.networks.bundle import Networks

log = logging.getLogger(__name__)

_Matrix = Sequence[Sequence[float]]
# Lavin and Gray, section 4. Of a square's side to the other basis, of a kernel's, and back.
_FORTH: dict[int, _Matrix] = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
_KERNEL: dict[int, _Matrix] = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
_BACK: dict[int, _Matrix] = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}

# With fewer channels the changes of basis take what the products save.
_LEAST_CHANNELS = 96
# Pairs of channels from which on m is 2. The kernels of such layers are most of a network, and
# m = 4 makes them four times as large, m = 2 less than twice; and their maps are small, so that a
# call would wait for the kernels' bytes.
_MANY_PAIRS = 2**20
# Bytes of squares and results in the other basis at once: more than a processor's caches waits
# for memory, less makes the matrix products small.
_BAND_BYTES = 32 * 2**20
# Kernels' output channels that are taken to the other basis at once, in float64.
_OUTPUTS = 64


class WinogradConv2d(nn.Module):
    """A 3x3 convolution with padding 1. Results are channels last.

    Args:
        conv: whose kernel and bias it has.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size = conv.kernel_size
        self.results = _results(conv)
        """m: the side of what one square gives."""
        self.weight = _transform(conv.weight, self.results)
        """((m + 2)^2, in, out)"""
        self.forth = constant(_both_ways(_FORTH[self.results]), conv.weight)
        """((m + 2)^2, (m + 2)^2)"""
        self.back = constant(_both_ways(_BACK[self.results]), conv.weight)
        """(m^2, (m + 2)^2)"""
        self.bias = None if conv.bias is None else constant(wide(conv.bias), conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h, w)."""
        return self.rows(x, padding=1)

    def rows(self, x: Tensor, *, padding: int) -> Tensor:
        """Rows (n, in, h, w) -> (n, out, h + 2 * padding - 2, w).

        `padding` is 1 where zeros stand above and below the rows, 0 where the first and the last
        are only read.
        """
        # Called as an operator, torch would load its compiler at the first image, in 1.5 s.
        convolve = _operator if torch.compiler.is_compiling() else _convolve
        return convolve(x, self.weight, self.forth, self.back, self.bias, padding)


def _convolve(
    x: Tensor, weight: Tensor, forth: Tensor, back: Tensor, bias: Tensor | None, padding: int
) -> Tensor:
    m, rows = math.isqrt(len(back)), x.shape[2]
    out, height = _new(x, weight, m, padding)
    n, down, _, across, _, channels = out.shape
    width = x.shape[3]
    pixels = x.permute(0, 2, 3, 1)
    for top, bottom in _bands(weight, n, down, across):
        first, end = m * top - padding, m * bottom + 2 - padding
        beyond = (1, m * across + 1 - width), (max(-first, 0), max(end - rows, 0))
        read = F.pad(pixels[:, max(first, 0) : end], (0, 0, *beyond[0], *beyond[1]))
        results = _squares(read, weight, forth, back)
        if bias is not None:
            results.view(-1, channels).add_(bias)
        results = results.view(m, m, n, bottom - top, across, channels)
        out[:, top:bottom] = results.permute(2, 3, 0, 4, 1, 5)
    return _crop(out, height, width)


# One operator for torch's compiler: it would take minutes over the strips, and win nothing.
_operator = torch.library.custom_op("stablesr::winograd", _convolve, mutates_args=())


@_operator.register_fake
def _(
    x: Tensor, weight: Tensor, forth: Tensor, back: Tensor, bias: Tensor | None, padding: int
) -> Tensor:
    out, height = _new(x, weight, math.isqrt(len(back)), padding)
    return _crop(out, height, x.shape[3])


def _new(x: Tensor, weight: Tensor, m: int, padding: int) -> tuple[Tensor, int]:
    """Room for the results, (n, squares down, m, squares across, m, out), and their height."""
    n, _, rows, width = x.shape
    height = rows + 2 * padding - 2
    return x.new_empty((n, -(-height // m), m, -(-width // m), m, weight.shape[2])), height


def _crop(out: Tensor, height: int, width: int) -> Tensor:
    """Whole squares -> (n, out, height, width)."""
    n, down, m, across, _, channels = out.shape
    whole = out.view(n, m * down, m * across, channels)
    return whole[:, :height, :width].permute(0, 3, 1, 2)


def _bands(weight: Tensor, n: int, down: int, across: int) -> Iterator[tuple[int, int]]:
    """Rows of squares that are computed at once, all about as many."""
    places, inputs, outputs = weight.shape
    row = places * (2 * inputs + outputs) * n * across * weight.element_size()
    bands = min(max(1, -(-row * down // _BAND_BYTES)), down)
    for band in range(bands):
        yield band * down // bands, (band + 1) * down // bands


def _squares(read: Tensor, weight: Tensor, forth: Tensor, back: Tensor) -> Tensor:
    """(n, m k + 2, m l + 2, in) -> (m^2, n k l * out): places of a square first."""
    places, inputs, _ = weight.shape
    side, m = math.isqrt(places), math.isqrt(len(back))
    squares = read.unfold(1, side, m).unfold(2, side, m)
    numbers = squares.permute(4, 5, 0, 1, 2, 3).reshape(places, -1)
    products = torch.bmm((forth @ numbers).view(places, -1, inputs), weight)
    return back @ products.view(places, -1)


def is_worthwhile(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether networks of this dtype compute faster so on this device."""
    return device.type == "cpu" and dtype == torch.float32


@torch.inference_mode(False)
@torch.no_grad()
def use_winograd(networks: Networks, room: int | None = None) -> None:
    """Wide 3x3 convolutions without stride, as far as there is room.

    After `fuse`, which reads the kernels.

    Args:
        networks: in place.
        room: bytes that their weights may grow by; as many as it takes, if not given.
    """
    parts = networks.autoencoder, networks.first_stage, networks.encoder, networks.unet
    total = 0
    plain: list[int] = []
    # What saves most time for a byte comes first: the autoencoder's maps are large, and a network's
    # largest are those with the fewest channels.
    for part in filter(None, parts):
        for owner, name, conv in sorted(_candidates(part), key=lambda place: _growth(place[2])):
            total, growth = total + 1, _growth(conv)
            if room is not None:
                if growth > room:
                    plain.append(growth)
                    continue
                room -= growth
            owner.register_module(name, WinogradConv2d(conv))
    if plain:
        log.warning(
            "%d of %d wide convolutions are computed as they are: in another basis they would be "
            "faster and take %s more memory, of which %s may be taken",
            len(plain),
            total,
            in_words(sum(plain)),
            in_words(room or 0),
        )


def _candidates(part: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Conv2d]]:
    """3x3 convolutions without stride that are wide enough, each with its owner and name."""
    for owner in part.modules():
        for name, conv in owner.named_children():
            if isinstance(conv, nn.Conv2d):
                shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
                narrow = min(conv.in_channels, conv.out_channels) < _LEAST_CHANNELS
                if shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and not narrow:
                    yield owner, name, conv


def _results(conv: nn.Conv2d) -> int:
    return 2 if conv.in_channels * conv.out_channels > _MANY_PAIRS else 4


def _growth(conv: nn.Conv2d) -> int:
    """Bytes of the kernel in the other basis, less its own."""
    places = (_results(conv) + 2) ** 2
    own = conv.weight.numel() * conv.weight.element_size()
    return own * places // 9 - own


def _transform(kernel: Tensor, results: int) -> nn.Parameter:
    """(out, in, 3, 3) -> ((m + 2)^2, in, out)."""
    forth = _both_ways(_KERNEL[results]).to(kernel.device)
    out, channels = kernel.shape[:2]
    weight = torch.empty((len(forth), channels, out), dtype=kernel.dtype, device=kernel.device)
    for start in range(0, out, _OUTPUTS):
        part = wide(kernel[start : start + _OUTPUTS]).flatten(2)
        weight[:, :, start : start + _OUTPUTS] = torch.einsum("pk,oik->pio", forth, part)
    return nn.Parameter(weight, requires_grad=False)


def _both_ways(side: _Matrix) -> Tensor:
    """The change of basis of a square from that of its side, places row by row; float64."""
    matrix = torch.tensor(side, dtype=torch.float64)
    return torch.kron(matrix, matrix)
