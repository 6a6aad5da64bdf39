"""Perceptual, adversarial and pixel terms; sharpening of targets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.networks.autoencoder import Autoencoder
from models.training.config import ImageLossSettings
from models.training.critic import PatchCritic, adaptive_weight, critic_loss, fooling_loss
from models.training.errors import InvalidRun
from models.training.image_loss import ImageLoss, gradient_loss, hue_loss
from models.training.perceptual import autoencoder_distance, feature_distance, vgg_distance
from models.training.sharpening import sharpen
from tests.models.narrow import CONFIG
from tests.models.training.small_run import CPU


def image(seed: int, side: int = 64) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CONFIG.autoencoder).requires_grad_(False)


def test_the_default_perceptual_distance_is_zero_for_equal_images_and_has_a_gradient() -> None:
    distance = autoencoder_distance(autoencoder())
    assert float(distance(image(0), image(0))) == 0
    moved = image(1).requires_grad_(True)
    value = distance(moved, image(0))
    assert float(value.detach()) > 0.1
    value.backward()  # type: ignore[no-untyped-call]  # torch declares no types here
    assert moved.grad is not None
    assert float(moved.grad.abs().max()) > 0


def test_feature_distance_ignores_length_and_heeds_the_heads() -> None:
    ours, theirs = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    plain = feature_distance([ours], [theirs])
    torch.testing.assert_close(feature_distance([5 * ours], [theirs]), plain)
    assert float(feature_distance([ours], [theirs], [torch.zeros(1, 4, 1, 1)])) == 0


def vgg_file(path: Path) -> Path:
    shapes = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}
    shapes |= {12: (256, 256), 14: (256, 256), 17: (256, 512)}
    shapes |= {layer: (512, 512) for layer in (19, 21, 24, 26, 28)}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer, (inputs, outputs) in shapes.items():
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
        tensors[f"features.{layer}.weight"] = weight / (9 * inputs / 2) ** 0.5
        tensors[f"features.{layer}.bias"] = torch.zeros(outputs)
    torch.save(tensors, path)
    return path


def test_a_vgg_16_and_lpips_heads_come_from_files(tmp_path: Path) -> None:
    network = vgg_file(tmp_path / "vgg16.pth")
    plain = vgg_distance(network, None, CPU)
    ours, theirs = image(1, 16), image(0, 16)
    assert float(plain(theirs, theirs)) == 0
    assert float(plain(ours, theirs)) > 0.1
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.ones(1, w, 1, 1) / 2 for i, w in enumerate(widths)}
    torch.save(heads, tmp_path / "heads.pth")
    headed = vgg_distance(network, tmp_path / "heads.pth", CPU)
    torch.testing.assert_close(headed(ours, theirs), plain(ours, theirs) / 2)


def test_a_file_that_is_no_vgg_16_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InvalidRun, match=r"no VGG-16: features.0.weight of \(64, 3, 3, 3\)"):
        vgg_distance(tmp_path / "other.pth", None, CPU)
    (tmp_path / "damaged.pth").write_bytes(b"no weights")
    with pytest.raises(InvalidRun, match=r"damaged\.pth holds no weights"):
        vgg_distance(tmp_path / "damaged.pth", None, CPU)
    with pytest.raises(InvalidRun, match="cannot be read"):
        vgg_distance(tmp_path / "none.pth", None, CPU)


def test_the_critic_learns_to_tell_two_kinds_of_images_apart() -> None:
    torch.manual_seed(0)
    critic = PatchCritic(4)
    optimizer = torch.optim.AdamW(critic.parameters(), 2e-3)
    first = last = 0.0
    for step in range(25):
        real, fake = image(step), image(100 + step) * 0.2
        loss = critic_loss(critic(real), critic(fake))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types here
        optimizer.step()
        first, last = first or float(loss.detach()), float(loss.detach())
    assert last < first / 2
    with torch.no_grad():
        assert fooling_loss(critic(image(0) * 0.2)) > fooling_loss(critic(image(0)))


def test_the_adaptive_weight_balances_the_gradients_at_the_last_layer() -> None:
    layer = nn.Linear(3, 1, bias=False)
    made = layer(torch.ones(1, 3)).sum()
    weight = adaptive_weight(6 * made, 2 * made, list(layer.parameters()))
    assert float(weight) == pytest.approx(3, rel=1e-3)
    assert not weight.requires_grad


def test_terms_are_weighted_and_those_without_weight_are_left_out() -> None:
    settings = ImageLossSettings(l1=2, gradient=0.5)
    terms = ImageLoss(settings, autoencoder(), seed=0, device=CPU).terms(image(0), image(1))
    assert set(terms) == {"l1", "gradient"}
    torch.testing.assert_close(terms["l1"], 2 * (image(0) - image(1)).abs().mean())
    torch.testing.assert_close(terms["gradient"], 0.5 * gradient_loss(image(0), image(1)))


def test_hue_is_what_the_channels_do_not_share() -> None:
    brighter = torch.full((1, 3, 4, 4), 0.3)
    assert float(hue_loss(brighter)) == pytest.approx(0, abs=1e-6)
    redder = brighter * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    assert float(hue_loss(redder)) > 0.1


def test_sharpening_steepens_edges_and_leaves_flat_places_and_grain_alone() -> None:
    step = torch.full((1, 3, 96, 96), 0.3)
    step[..., 48:] = 0.7
    grain = torch.randn(step.shape, generator=torch.Generator().manual_seed(0)) / 255
    sharp = sharpen(step + grain)
    assert float(sharp[..., 48:52].mean()) > 0.73
    assert float(sharp[..., 44:48].mean()) < 0.27
    flat = torch.full((1, 3, 96, 96), 0.5) + grain
    torch.testing.assert_close(sharpen(flat), flat, atol=1e-6, rtol=0)
