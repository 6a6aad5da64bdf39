"""From requests of any number of jobs to network calls, and back to predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.ahead import Foreseeing
from models.autoencoding import Changes
from models.compiled import Denoises
from models.networks.bundle import Networks
from models.reuse import alike, predict_reusing
from models.sampling import StepRequest

__all__ = ["Predicting", "contexts_of"]


class Predicting:
    """Makes one call of requests that can share one: with the encoder ahead, or with deep features
    of another step, where that is so.

    Args:
        networks: of the denoiser.
        device: where they compute.
        denoiser: who makes the calls.
        changes: noted where memory ran out.
    """

    def __init__(
        self, networks: Networks, device: torch.device, denoiser: Denoises, changes: Changes
    ) -> None:
        self._networks, self._device = networks, device
        self._foreseeing = Foreseeing(changes)
        self.denoiser = denoiser
        """May be exchanged before the first call."""

    def __call__(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        """float32, one (n, c, h, w) a request; all tiles must have one shape."""
        predictions: dict[int, Tensor] = {}
        for together in alike([request.share for request in requests]):
            out = self._call([requests[index] for index in together])
            sizes = [len(requests[index]) for index in together]
            predictions.update(zip(together, torch.split(out, sizes), strict=True))
        return [predictions[index] for index in range(len(requests))]

    def _call(self, requests: Sequence[StepRequest]) -> Tensor:
        """Of requests that all compute everything, or share deep features alike."""
        networks, denoiser = self._networks, self.denoiser
        noisy = torch.cat([r.noisy for r in requests]).to(denoiser.dtype)
        lr = torch.cat([r.lr for r in requests]).to(denoiser.dtype)
        timesteps = [r.timestep for r in requests for _ in range(len(r))]
        context = contexts_of(networks, requests)
        shares = [r.share for r in requests if r.share is not None]
        if shares:
            if denoiser.wanted:
                denoiser.eager_calls["reuse"] += 1
            return predict_reusing(networks, self._device, noisy, lr, timesteps, context, shares)
        if context is None:
            out = self._foreseeing(denoiser.apart, [r.ahead for r in requests], noisy, lr)
            if out is not None:
                return out
        return denoiser(noisy, lr, timesteps, context)


def contexts_of(networks: Networks, requests: Sequence[StepRequest]) -> Tensor | None:
    """Of all tiles (n, tokens, width), of the networks' dtype and on the tiles' device; None if
    every one has the empty prompt's."""
    if all(r.context is None for r in requests):
        return None
    known = networks.context
    parts = [known.expand(len(r), -1, -1) if r.context is None else r.context for r in requests]
    place = requests[0].noisy.device
    return torch.cat([part.to(place, known.dtype) for part in parts])
