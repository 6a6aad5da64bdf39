"""Which networks lie on the device: all of them, or with offload only the part at work.

The autoencoder works at an image's beginning and end, the denoiser (UNet and time-aware encoder)
in between, and neither while the other does. A device too small for both holds one at a time; the
weights of all wait on the host, where they have their place for good: what leaves the device is
dropped, not copied back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from models.estimate import Weights
from models.networks.bundle import Networks

__all__ = ["Offloaded", "Part", "Residency", "Resident"]

Part = Literal["autoencoder", "denoiser"]


class Residency(Protocol):
    """Says when a part's networks may be called."""

    def holding(self, part: Part) -> AbstractContextManager[None]:
        """Within, the part's networks are on the device."""

    def held(self, weights: Weights) -> int:
        """Bytes of the weights that are on the device."""


class Resident:
    """All parts are on the device all the time."""

    @contextmanager
    def holding(self, part: Part) -> Iterator[None]:
        yield

    def held(self, weights: Weights) -> int:
        return weights.all


class Offloaded:
    """One part at a time is on the device, for one thread at a time; others wait, in no order. A
    worker has them wait in its own (`worker.device_lock`).

    Args:
        networks: on the host.
        device: where they work.
    """

    def __init__(self, networks: Networks, device: torch.device) -> None:
        own = networks.autoencoder, networks.first_stage
        self._weights: dict[Part, list[_Weight]] = {
            "autoencoder": list(_weights(own)),
            "denoiser": list(_weights((networks.unet, networks.encoder))),
        }
        self._device = device
        self._lock = threading.Lock()
        self.there: Part | None = None
        """The part on the device."""
        self.moves = 0
        """How often a part was brought there."""

    @contextmanager
    def holding(self, part: Part) -> Iterator[None]:
        with self._lock:
            if self.there != part:
                self._bring(part)
            yield

    def held(self, weights: Weights) -> int:
        there = self.there
        if there is None:
            return 0
        return weights.autoencoder if there == "autoencoder" else weights.denoiser

    def _bring(self, part: Part) -> None:
        """A part that does not fit leaves the device empty."""
        if self.there is not None:
            _place(self._weights[self.there], None)
        self.there = None
        try:
            _place(self._weights[part], self._device)
        except BaseException:
            _place(self._weights[part], None)
            raise
        self.there = part
        self.moves += 1


_Weight = tuple[nn.Module, str, Tensor]
"""A module, a parameter's name in it, and its values on the host."""


def _weights(modules: Iterable[nn.Module | None]) -> Iterator[_Weight]:
    for module in modules:
        for owner in module.modules() if module is not None else ():
            for name, parameter in owner.named_parameters(recurse=False):
                yield owner, name, parameter.data


def _place(weights: Iterable[_Weight], device: torch.device | None) -> None:
    """On the device; None lets go of it again."""
    # Weights outlive the call in which they come, so they must be ordinary tensors.
    with torch.inference_mode(False):
        for owner, name, values in weights:
            placed = values if device is None else values.to(device)
            setattr(owner, name, nn.Parameter(placed, requires_grad=False))
