"""Fuse for inference: what of the networks' arithmetic does not depend on the image is done once.

Each fuse puts modules in the place of others, in place, and gives the same results up to rounding;
they can be applied alone or together, in any order. A fused network is for inference only: its
state dict is no longer that of a checkpoint, and what a fuse has made superfluous is dropped.

    upsampling   nearest neighbours and a 3x3 convolution become one of four 2x2 kernels
    context      keys and values of the empty prompt become constants
    times        the time embeddings become a table that also holds the convolutions' bias
    modulation   two convolutions and an affine become one, first convolutions are joined
    attention    queries, keys and values come from one product

Where that is faster, convolutions are then taken to another basis (`models.fusing.winograd`):
last, because fuses read kernels. `for_inference` does all that suits a device.

New weights are computed in float64 and rounded once to the dtype of those that they replace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType

import torch

from models.fusing.attention import fuse_attention
from models.fusing.context import fuse_context
from models.fusing.modulation import fuse_modulation
from models.fusing.times import fuse_times
from models.fusing.upsampling import fuse_upsampling
from models.fusing.winograd import is_worthwhile, use_winograd
from models.networks.bundle import Networks, channels_last
from models.networks.compact import CompactAutoencoder

__all__ = [
    "FUSIONS",
    "for_inference",
    "fuse",
    "fuse_attention",
    "fuse_context",
    "fuse_modulation",
    "fuse_times",
    "fuse_upsampling",
    "is_worthwhile",
    "use_winograd",
]

FUSIONS = MappingProxyType[str, Callable[[Networks], None]](
    {
        "upsampling": fuse_upsampling,
        "context": fuse_context,
        "times": fuse_times,
        "modulation": fuse_modulation,
        "attention": fuse_attention,
    }
)
"""Each by its name."""


def fuse(networks: Networks, names: Iterable[str] = tuple(FUSIONS)) -> Networks:
    """Applies fuses to networks in evaluation mode, in place, and returns the networks.

    Fusing again changes nothing.
    """
    for name in names:
        FUSIONS[name](networks)
    return networks


def for_inference(
    networks: Networks, device: torch.device, dtype: torch.dtype, room: Callable[[], int]
) -> None:
    """All fuses, and whatever else makes networks of this dtype faster on this device, in place.

    `room` says how many bytes their weights may grow by, asked when they are fused.
    """
    fuse(networks)
    if isinstance(networks.autoencoder, CompactAutoencoder):
        # As its strips lie: else each convolution would lay its kernel out anew at every call.
        channels_last(networks.autoencoder)
    if is_worthwhile(device, dtype):
        use_winograd(networks, room())
