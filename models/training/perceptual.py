"""Perceptual distances between images: LPIPS (arXiv 1801.03924, eq. 1) over a frozen network.

The network is a component. A VGG-16 comes from a file, as it cannot be had with this package;
without one the features are those of the model's own frozen autoencoder, which costs no download
and knows edges and texture at a half and a quarter of the size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.networks.autoencoder import Autoencoder
from models.training.errors import InvalidRun

__all__ = ["Perceptual", "autoencoder_distance", "feature_distance", "vgg_distance"]

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Image and target, (n, 3, H, W) in [-1, 1] -> a scalar with a gradient to the image."""

# Convolutions of VGG-16's five blocks, named as torchvision's `features` names them.
_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_WIDTHS = (64, 128, 256, 512, 512)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def feature_distance(
    image: Sequence[Tensor], target: Sequence[Tensor], heads: Sequence[Tensor] | None = None
) -> Tensor:
    """Squared difference of features whose length at each place is one, summed over the layers.

    Args:
        image, target: a (n, c, h, w) a layer.
        heads: a weight for each channel, (1, c, 1, 1) a layer; None: all the same.
    """
    total = image[0].new_zeros(())
    for at, (ours, theirs) in enumerate(zip(image, target, strict=True)):
        squares = (_unit(ours) - _unit(theirs)).square()
        if heads is not None:
            squares = squares * heads[at]
        total = total + squares.sum(dim=1).mean()
    return total


def _unit(feature: Tensor) -> Tensor:
    feature = feature.float()
    return feature / (feature.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def autoencoder_distance(autoencoder: Autoencoder) -> Perceptual:
    """Over the taps and the latent's mean of an autoencoder that does not learn."""

    def features(image: Tensor) -> list[Tensor]:
        moments, taps = autoencoder.encode(image)
        return [taps.half_size, taps.quarter_size, moments.chunk(2, dim=1)[0]]

    def distance(image: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = features(target)
        return feature_distance(features(image), wanted)

    return distance


def vgg_distance(network: Path, heads: Path | None, device: torch.device) -> Perceptual:
    """Over VGG-16, its weights in torchvision's names, and LPIPS's heads in that package's.

    Raises:
        InvalidRun: a file is not there, or holds something else.
    """
    found = _tensors(network)
    blocks = nn.ModuleList()
    inputs = 3
    for layers, width in zip(_BLOCKS, _WIDTHS, strict=True):
        block: list[nn.Module] = [] if inputs == 3 else [nn.MaxPool2d(2)]
        for layer in layers:
            convolution = nn.Conv2d(inputs, width, 3, padding=1)
            for part, parameter in convolution.named_parameters():
                name = f"features.{layer}.{part}"
                if name not in found or found[name].shape != parameter.shape:
                    raise InvalidRun(
                        f"{network} is no VGG-16: {name} of {tuple(parameter.shape)} is needed."
                    )
                parameter.data = found[name].float()
            block += [convolution, nn.ReLU()]
            inputs = width
        blocks.append(nn.Sequential(*block))
    blocks.to(device).requires_grad_(False)
    weights = None if heads is None else _heads(heads, device)
    mean = torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)
    deviation = torch.tensor(_DEVIATION, device=device).view(1, 3, 1, 1)

    def features(image: Tensor) -> list[Tensor]:
        seen = []
        x = (image * 0.5 + 0.5 - mean) / deviation
        for block in blocks:
            x = block(x)
            seen.append(x)
        return seen

    def distance(image: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = features(target)
        return feature_distance(features(image), wanted, weights)

    return distance


def _heads(path: Path, device: torch.device) -> list[Tensor]:
    found = _tensors(path)
    heads = []
    for layer, width in enumerate(_WIDTHS):
        name = f"lin{layer}.model.1.weight"
        if name not in found or found[name].numel() != width:
            raise InvalidRun(f"{path} holds no LPIPS heads: {name} of {width} values is needed.")
        heads.append(found[name].float().view(1, width, 1, 1).to(device))
    return heads


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InvalidRun(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # the unpickler raises whatever a damaged file makes of it
        raise InvalidRun(f"{path} holds no weights: {error}") from error
    if not isinstance(loaded, dict):
        raise InvalidRun(f"{path} holds a {type(loaded).__name__}, and no tensors by name.")
    return loaded
