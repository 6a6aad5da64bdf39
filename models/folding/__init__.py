"""Fold for inference: what of the networks' arithmetic does not depend on the image is done once.

Each fold puts modules in the place of others, in place, and gives the same results up to rounding;
they can be applied alone or together, in any order. A folded network is for inference only: its
state dict is no longer that of a checkpoint, and what a fold has made superfluous is dropped.

    upsampling   nearest neighbours and a 3x3 convolution become one of four 2x2 kernels
    context      keys and values of the empty prompt become constants
    times        the time embeddings become a table that also holds the convolutions' bias
    modulation   two convolutions and an affine become one, first convolutions are joined
    attention    queries, keys and values come from one product

Where that is faster, convolutions are then taken to another basis (`models.folding.winograd`):
last, because folds read kernels. `for_inference` does all that suits a device.

New weights are computed in float64 and rounded once to the dtype of those that they replace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType

import torch

from models.folding.attention import fold_attention
from models.folding.context import fold_context
from models.folding.modulation import fold_modulation
from models.folding.times import fold_times
from models.folding.upsampling import fold_upsampling
from models.folding.winograd import fold_convolutions, is_worthwhile
from models.networks.bundle import Networks
from models.networks.compact import CompactAutoencoder
from models.networks.layout import channels_last

__all__ = [
    "FOLDS",
    "fold",
    "fold_attention",
    "fold_context",
    "fold_convolutions",
    "fold_modulation",
    "fold_times",
    "fold_upsampling",
    "for_inference",
    "is_worthwhile",
]

FOLDS = MappingProxyType[str, Callable[[Networks], None]](
    {
        "upsampling": fold_upsampling,
        "context": fold_context,
        "times": fold_times,
        "modulation": fold_modulation,
        "attention": fold_attention,
    }
)
"""Each by its name."""


def fold(networks: Networks, names: Iterable[str] = tuple(FOLDS)) -> Networks:
    """Applies folds to networks in evaluation mode, in place, and returns the networks.

    Folding again changes nothing.
    """
    for name in names:
        FOLDS[name](networks)
    return networks


def for_inference(
    networks: Networks, device: torch.device, dtype: torch.dtype, room: Callable[[], int]
) -> None:
    """All folds, and whatever else makes networks of this dtype faster on this device, in place.

    `room` says how many bytes their weights may grow by, asked when they are folded.
    """
    fold(networks)
    if isinstance(networks.autoencoder, CompactAutoencoder):
        # As its strips lie: else each convolution would lay its kernel out anew at every call.
        channels_last(networks.autoencoder)
    if is_worthwhile(device, dtype):
        fold_convolutions(networks, room())
