"""What an image that a stage makes is worth: pixel, perceptual and adversarial terms.

The critic is pix2pix's PatchGAN (arXiv 1611.07004, section 3.2.2) with a hinge loss, and group norm
in place of batch norm, so that one image's judgement does not hang on its neighbours. Its adaptive
weight is VQGAN's (arXiv 2012.09841, eq. 7).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.bundle import AnyAutoencoder
from training.config import ImageLossSettings
from training.perceptual import (
    Features,
    autoencoder_features,
    feature_distance,
    lpips_heads,
    texture_distance,
    vgg_features,
)

_LEAST_ERROR = 0.003
# ITU-R BT.601, as `evaluation.metrics` has it.
_LUMA = (0.299, 0.587, 0.114)
# In decades: about what chance makes of a line in one image.
_LINE = 0.06


def _luma(image: Tensor) -> Tensor:
    """(n, 3, H, W) -> (n, H, W), as bright as the image is."""
    return (image * image.new_tensor(_LUMA)[:, None, None]).sum(dim=1)


def psnr_loss(image: Tensor, target: Tensor) -> Tensor:
    """log10 of the mean squared error of each image's luma, mean: a tenth less is a decibel more.

    Images (n, 3, H, W) in [-1, 1]. From 31 dB on more counts less, since images have worse places.
    """
    error = _luma(image - target).square().mean(dim=(1, 2))
    return torch.log10(error + _LEAST_ERROR).mean()


def ssim_loss(image: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM of luma (Wang et al. 2004, eq. 13, windows as there), mean; images (n, 3, H, W) in
    [-1, 1], at least 11 a side."""
    # In limited range, as it is scored: the constants then weigh the same.
    x, y = ((_luma(i) * 109.5 + 125.5) / 255 for i in (image, target))
    # Products of matrices: a convolution of one channel is slow. In bfloat16, which autocast would
    # take, nothing is left of the variances.
    with torch.autocast(x.device.type, enabled=False):
        rows, columns = (_window(side).to(x) for side in x.shape[1:])
        mean_x, mean_y, xx, yy, xy = (rows.t() @ z @ columns for z in (x, y, x * x, y * y, x * y))
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    same = (2 * product + 1e-4) * (2 * (xy - product) + 9e-4)
    return 1 - (same / ((squares + 1e-4) * (xx + yy - squares + 9e-4))).mean()


@cache
def _window(side: int) -> Tensor:
    """(side, side - 10): times this, a line is averaged by a Gaussian of 11 pixels."""
    weights = torch.exp(-torch.arange(-5.0, 6.0).square() / (2 * 1.5**2))
    window = torch.zeros(side, side - 10)
    for at, weight in enumerate(weights / weights.sum()):
        window.diagonal(-at).fill_(weight)
    return window


def gradient_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 of horizontal and vertical differences at three sizes: keeps edges from smearing."""
    total = image.new_zeros(())
    for _ in range(3):
        for dim in (2, 3):
            total = total + (image.diff(dim=dim) - target.diff(dim=dim)).abs().mean()
        image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
    return total


def phase_loss(error: Tensor, side: int = 8) -> Tensor:
    """How far the mean error of each place of a `side` x `side` cell is from that of all places.

    What a decoder adds at the same place of every cell is a lattice. Error (n, c, H, W), sides
    multiples of `side`.
    """
    n, c, height, width = error.shape
    places = error.reshape(n, c, height // side, side, width // side, side).mean(dim=(2, 4))
    return (places - places.mean(dim=(2, 3), keepdim=True)).abs().mean()


def lattice_loss(image: Tensor, side: int = 8) -> Tensor:
    """How far lines of a lattice stand out of the spectrum, in decades, mean of four and two ways.

    Of the luma's differences of neighbours, over all rows (columns) of each image (n, 3, H, W), at
    least 96 a side: the power at 1/8 to 4/8 cycles a pixel over that around, as
    `evaluation.metrics` scores it. Photographs have 0. In the power of a whole batch, a smooth
    image's lines would be lost.
    """
    total = image.new_zeros((), dtype=torch.float32)
    luma = image.float().mean(dim=1)
    for lines in (luma, luma.mT):
        steps = lines.diff(dim=2)
        # A whole number of cells, so that a line lies in one place of the spectrum.
        count = steps.shape[2] // side
        window = torch.hann_window(side * count, periodic=False, device=image.device)
        spectrum = torch.fft.rfft(steps[..., : side * count] * window)
        power = spectrum.abs().square().mean(dim=1)
        for at in range(count, power.shape[1], count):
            around = torch.cat([power[:, at - 6 : at - 2], power[:, at + 3 : at + 7]], dim=1)
            total = total + F.relu(torch.log10(power[:, at] / around.mean(dim=1)) - _LINE).mean()
    return total / side


class ImageLoss:
    """The weighted terms of one stage. The autoencoder's frozen encoder is the default perceptual
    network; the seed is that of the critic's random start."""

    def __init__(
        self,
        settings: ImageLossSettings,
        autoencoder: AnyAutoencoder,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self._settings = settings
        self._features: Features | None = None
        if settings.perceptual or settings.texture:
            path = settings.perceptual_network
            self._features = (
                autoencoder_features(autoencoder)
                if path is None
                else vgg_features(path, device, settings.perceptual_blocks)
            )
        heads = settings.perceptual_heads
        self._heads = None if heads is None else lpips_heads(heads, device)
        self.critic: PatchCritic | None = None
        if settings.adversarial:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.critic = PatchCritic().to(device)

    def has_critic(self, step: int) -> bool:
        """Whether there is a critic, and it has joined by this step."""
        return self.critic is not None and step >= self._settings.adversarial_after

    def terms(self, image: Tensor, target: Tensor, step: int) -> dict[str, Tensor]:
        """All but the adversarial term, weighted; images (n, 3, H, W) in [-1, 1].

        `step` decides which part is compared perceptually.
        """
        s = self._settings
        terms = {}
        if s.l1:
            terms["l1"] = s.l1 * F.l1_loss(image, target)
        if s.psnr:
            terms["psnr"] = s.psnr * psnr_loss(image, target)
        if s.ssim:
            terms["ssim"] = s.ssim * ssim_loss(image, target)
        if s.gradient:
            terms["gradient"] = s.gradient * gradient_loss(image, target)
        if s.phase:
            terms["phase"] = s.phase * phase_loss(image - target)
        if s.lattice:
            terms["lattice"] = s.lattice * lattice_loss(image)
        if self._features is not None:
            # The same place of both, of any phase of a latent pixel.
            draw, side = random.Random(step), s.perceptual_side or max(image.shape[2:])
            top, left = (draw.randrange(max(1, n - side + 1)) for n in image.shape[2:])
            rows, columns = slice(top, top + side), slice(left, left + side)
            with torch.no_grad():
                theirs = self._features(target[..., rows, columns])
            ours = self._features(image[..., rows, columns])
            if s.perceptual:
                distance = feature_distance(ours, theirs, self._heads)
                terms["perceptual"] = s.perceptual * distance
            if s.texture:
                terms["texture"] = s.texture * texture_distance(ours, theirs)
        return terms

    def adversarial(self, image: Tensor, rest: Tensor, last: Sequence[Tensor]) -> Tensor:
        """The weighted adversarial term of an image (n, 3, H, W) in [-1, 1]; `rest` is the sum of
        the others, `last` the parameters of the last layer that learns."""
        assert self.critic is not None  # the caller asks only where there is one
        self.critic.requires_grad_(False)
        generator_loss: Tensor = -self.critic(image).mean()
        self.critic.requires_grad_(True)
        weight = adaptive_weight(rest, generator_loss, last)
        return self._settings.adversarial * weight * generator_loss

    @staticmethod
    def critic_term(critic: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        """What the critic, as the trainer wrapped it, minimises: a hinge loss of its scores."""
        real, fake = critic(torch.cat([target, image.detach()])).float().chunk(2)
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


class PatchCritic(nn.Module):
    """Says of overlapping patches of 70 pixels how real they look; `width` channels at first, then
    up to eight times as many."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2))
        for factor, stride in ((1, 2), (2, 2), (4, 1)):
            inputs, outputs = width * factor, 2 * width * factor
            self.layers.append(nn.Conv2d(inputs, outputs, 4, stride, 1, bias=False))
            self.layers.append(nn.GroupNorm(8, outputs)).append(nn.LeakyReLU(0.2))
        self.layers.append(nn.Conv2d(8 * width, 1, 4, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(n, 3, H, W) in [-1, 1], at least 32 a side -> (n, 1, H/8 - 2, W/8 - 2) scores."""
        out: Tensor = self.layers(image)
        return out


def adaptive_weight(rest: Tensor, adversarial: Tensor, last: Sequence[Tensor]) -> Tensor:
    """Weight at which both terms, scalars, move the parameters `last` equally far: no gradient
    through it."""
    norms = [
        torch.cat([g.flatten() for g in torch.autograd.grad(term, last, retain_graph=True)]).norm()
        for term in (rest, adversarial)
    ]
    weight: Tensor = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    return weight
