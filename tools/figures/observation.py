"""The UNet looked at and changed by forward hooks: the paper's figure 3, and ablations.

`similarity` measures how much the modulation changes features over the timesteps. The others leave
one part of the method out. The paper trains anew without the part; here the network was trained
with it and misses it at inference. That says how much it relies on the part, which is more than
what the part brought.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from evaluation.methods import Predict
from models.denoiser import TileBatch
from models.networks.bundle import Networks
from models.networks.unet import FeatureModulation, ModulatedUNet
from models.pipeline import StableSR
from models.sampling import StepRequest
from models.schedulers import add_noise, alphas_cumprod


@dataclass(frozen=True)
class Similarity:
    """Cosine similarity at each timestep, mean over pictures and residual blocks."""

    timesteps: list[int]
    by_size: dict[int, list[float]]
    """By the side of the feature map as a fraction of the latent's: 1, 2, 4, 8 for 1/1 to 1/8"""

    @property
    def mean(self) -> list[float]:
        """Over the sizes."""
        columns = zip(*self.by_size.values(), strict=True)
        return [sum(values) / len(self.by_size) for values in columns]


def signal_to_noise(timesteps: Sequence[int]) -> list[float]:
    """Of the diffusion at these timesteps: a / (1 - a) for the cumulative signal fraction a."""
    a = alphas_cumprod()[list(timesteps)]
    return [float(value) for value in a / (1 - a)]


def similarity(
    sr: StableSR,
    clean: Tensor,
    lr: Tensor,
    timesteps: Sequence[int],
    predict: Predict | None = None,
    seed: int = 0,
) -> Similarity:
    """Cosine of every residual block's features before and after the modulation.

    Before is what the modulation's group norm gives, so that a modulation that does nothing has
    exactly 1, whatever the norm's own scale is.

    Args:
        sr: whose UNet is looked at.
        clean: scaled latents of the originals (n, c, h, w), noised here to each timestep.
        lr: scaled latents of the inputs, like it.
        timesteps: of the full schedule.
        predict: a network call in place of the model's own.
        seed: of the noise, which is the same at all timesteps.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    context = sr.networks.context.expand(len(clean), -1, -1)
    by_size: dict[int, list[float]] = defaultdict(list)
    for at, timestep in enumerate(timesteps):
        noisy = add_noise(clean, noise, timestep)
        request = StepRequest(noisy, lr, timestep, context, at, len(timesteps))
        with _observe(sr.networks.unet, clean.shape[-1]) as cosines:
            (predict or sr.predict)([request])
        for size, values in sorted(cosines.items()):
            by_size[size].append(sum(values) / len(values))
    return Similarity(list(timesteps), dict(by_size))


@contextmanager
def _observe(unet: ModulatedUNet, side: int) -> Iterator[dict[int, list[float]]]:
    """While it lasts, each modulation adds its cosine under how much smaller its map is."""
    cosines: dict[int, list[float]] = defaultdict(list)
    norms: dict[nn.Module, Tensor] = {}
    handles: list[RemovableHandle] = []

    def before(norm: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        norms[norm] = out

    def after(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(module, FeatureModulation)
        flat = [x.detach().flatten(1).float() for x in (norms.pop(module.norm), out)]
        cosine = float(F.cosine_similarity(flat[0], flat[1]).mean())
        cosines[side // int(out.shape[-1])].append(cosine)

    try:
        for module in modulations(unet):
            handles.append(module.norm.register_forward_hook(before))
            handles.append(module.register_forward_hook(after))
        yield cosines
    finally:
        for handle in handles:
            handle.remove()


def encoder_at(sr: StableSR, timestep: int) -> Predict:
    """A network call whose encoder is told this timestep always; the UNet is told the true one."""

    @torch.inference_mode()
    def predict(requests: Sequence[StepRequest]) -> list[Tensor]:
        sizes = [len(r) for r in requests]
        tiles = TileBatch.of(requests, sr.networks.context)
        true = torch.tensor(tiles.timesteps)
        with sr.on_device("denoiser"):
            constant = torch.full_like(true, timestep).to(sr.device)
            features = sr.networks.encoder(tiles.lr, constant)
            context = tiles.context
            if context is None:
                context = sr.networks.context.expand(len(true), -1, -1)
            out: Tensor = sr.networks.unet(tiles.noisy, true.to(sr.device), context, features)
        return list(torch.split(out.float(), sizes))

    return predict


def modulations(unet: ModulatedUNet) -> list[FeatureModulation]:
    """Of every residual block; a fused network (`models.fusing`) has none to look at."""
    result = [module for module in unet.modules() if isinstance(module, FeatureModulation)]
    assert result, "the networks are fused: load them with fuse=False"
    return result


@contextmanager
def without_modulation(unet: ModulatedUNet) -> Iterator[None]:
    """While it lasts, features are normalised as ever, and neither scaled nor shifted."""

    def plain(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        assert isinstance(module, FeatureModulation)
        result: Tensor = module.norm(inputs[0])
        return result

    handles: list[RemovableHandle] = []
    try:
        for module in modulations(unet):
            handles.append(module.register_forward_hook(plain))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_grain(networks: Networks) -> Iterator[None]:
    """While it lasts, none is added (`models.grain`)."""
    config = networks.config
    networks.config = replace(config, grain=0.0)
    try:
        yield
    finally:
        networks.config = config


def with_tile(sr: StableSR, cells: int) -> StableSR:
    """The same weights with tiles of another side, so that small pictures have several."""
    preset = replace(sr.preset, tile=cells, overlap=cells // 2)
    return StableSR(sr.networks, preset, sr.device, sr.dtype, sr.planner.budget)
