"""Fuses layers for inference: arithmetic that does not depend on the image is done once.

Modules are replaced in place and give the same results up to rounding. Fused networks are for
inference only: their state dict is no longer that of a checkpoint, and layers that are no longer
needed are dropped.

    upsampling   nearest neighbours and a 3x3 convolution become one of four 2x2 kernels
    modulation   two convolutions and an affine become one, first convolutions are joined
    times        the time embeddings become a table that also holds the convolutions' bias
    context      keys and values of the empty prompt become constants
    attention    queries, keys and values come from one product

Where that is faster, convolutions then use Winograd's algorithm (`models.fusing.winograd`), which
reads the new kernels. `for_inference` does all that suits a device.

New weights are computed in float64 and rounded once to the dtype of those that they replace.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from models.fusing.attention import fuse_attention, fuse_context
from models.fusing.layers import fuse_modulation, fuse_times, fuse_upsampling
from models.fusing.winograd import is_worthwhile, use_winograd
from models.networks.bundle import Networks, channels_last
from models.networks.compact import CompactAutoencoder

__all__ = ["for_inference", "fuse", "is_worthwhile", "use_winograd"]


@torch.inference_mode(False)
@torch.no_grad()
def fuse(networks: Networks) -> Networks:
    """Fuses networks in evaluation mode, in place, and returns them."""
    fuse_upsampling(networks)
    fuse_modulation(networks)
    fuse_times(networks)
    fuse_context(networks)
    fuse_attention(networks)
    return networks


def for_inference(
    networks: Networks, device: torch.device, dtype: torch.dtype, room: Callable[[], int]
) -> None:
    """`fuse`, and whatever else makes networks of this dtype faster on this device, in place.

    `room` says how many bytes their weights may grow by, asked when they are fused.
    """
    fuse(networks)
    if isinstance(networks.autoencoder, CompactAutoencoder):
        # As its strips lie: else each convolution would lay its kernel out anew at every call.
        channels_last(networks.autoencoder)
    if is_worthwhile(device, dtype):
        use_winograd(networks, room())
