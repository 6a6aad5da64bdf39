"""The moving average of the weights that learn: what a stage hands on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Average", "blended"]


class Average:
    """Exponential, of some parameters.

    Args:
        parameters: by name; they are read, and for a while exchanged, never kept.
        decay: of the average in one step.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._tensors = {n: p.detach().clone() for n, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, counted from 0."""
        # Early steps would otherwise weigh the start for hundreds of steps.
        decay = min(self._decay, (1 + step) / (10 + step))
        # One kernel for all of them where there is one.
        torch._foreach_lerp_(
            list(self._tensors.values()), list(self._parameters.values()), 1 - decay
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the networks hold the average; after it their own weights, bit for bit."""
        kept = {n: p.detach().clone() for n, p in self._parameters.items()}
        self.apply()
        try:
            yield
        finally:
            self._copy(kept)

    def apply(self) -> None:
        """The networks hold the average from now on."""
        self._copy(self._tensors)

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])


@contextmanager
@torch.no_grad()
def blended(
    parameters: Mapping[str, nn.Parameter], start: Mapping[str, Tensor], share: float
) -> Iterator[None]:
    """Meanwhile the parameters lie between `start` and themselves, `share` of the way; after it
    they are as before, bit for bit (arXiv 2109.01903, section 3)."""
    ends = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.copy_(start[name].lerp(ends[name], share))
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(ends[name])
