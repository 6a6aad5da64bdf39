"""The method with one part left out, for ablations: the weights stay, only the use of them changes.

The paper trains anew without the part; here the network was trained with it and misses it at
inference. That says how much it relies on the part, which is more than what the part brought.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evaluation.methods import Predict
from models.denoiser import TileBatch
from models.networks.modulation import FeatureModulation
from models.networks.unet import ModulatedUNet
from models.pipeline import StableSR
from models.sampling import StepRequest

__all__ = ["encoder_at", "modulations", "with_tile", "without_modulation"]


def encoder_at(sr: StableSR, timestep: int) -> Predict:
    """A network call whose encoder is told this timestep always; the UNet is told the true one."""

    @torch.inference_mode()
    def predict(requests: Sequence[StepRequest]) -> list[Tensor]:
        sizes = [len(r) for r in requests]
        tiles = TileBatch.of(requests, sr.networks.context)
        true = torch.tensor(tiles.timesteps)
        with sr.residency.holding("denoiser"):
            told = torch.full_like(true, timestep).to(sr.device)
            features = sr.networks.encoder(tiles.lr, told)
            context = tiles.context
            if context is None:
                context = sr.networks.context.expand(len(true), -1, -1)
            out: Tensor = sr.networks.unet(tiles.noisy, true.to(sr.device), context, features)
        return list(torch.split(out.float(), sizes))

    return predict


def modulations(unet: ModulatedUNet) -> list[FeatureModulation]:
    """Of every residual block; a folded network (`models.folding`) has none to look at."""
    found = [module for module in unet.modules() if isinstance(module, FeatureModulation)]
    assert found, "the networks are folded: load them with fold=False"
    return found


@contextmanager
def without_modulation(unet: ModulatedUNet) -> Iterator[None]:
    """While it lasts, features are normalised as ever, and neither scaled nor shifted."""

    def plain(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        assert isinstance(module, FeatureModulation)
        kept: Tensor = module.norm(given[0])
        return kept

    handles: list[RemovableHandle] = []
    try:
        for module in modulations(unet):
            handles.append(module.register_forward_hook(plain))
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_tile(sr: StableSR, cells: int) -> StableSR:
    """The same weights with tiles of another side, so that small pictures have several."""
    preset = replace(sr.preset, tile=cells, overlap=cells // 2)
    return StableSR(sr.networks, preset, sr.device, sr.dtype, sr.planner.resources)
