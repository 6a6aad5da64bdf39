"""Networks on their device: loaded, fused, and with offload one part at a time.

The autoencoder works at an image's beginning and end, the denoiser (UNet and time-aware encoder)
in between, and neither while the other does. A device too small for both holds one at a time; the
weights of all wait on the host, where they have their place for good: what leaves the device is
dropped, not copied back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from models.checkpoints.folder import load_folder, open_folder, random_networks
from models.config import ModelConfig
from models.estimate import Estimate, Weights
from models.fusing import for_inference
from models.memory import MemoryBudget, room_to_grow
from models.networks.bundle import Networks

_HOST = torch.device("cpu")

Part = Literal["autoencoder", "denoiser"]

_Weight = tuple[nn.Module, str, Tensor]
"""A module, a parameter's name in it, and its values on the host."""


def load_networks(
    source: Path | ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    budget: MemoryBudget,
    *,
    fuse: bool,
) -> tuple[Networks, MemoryBudget]:
    """Networks from a folder, or of a configuration with random weights, and the budget with
    `offload` decided. They lie on the device, or on the host with offload.

    Raises:
        WeightsNotFound, CheckpointError: the folder has no weights, or others than it says.
    """
    if budget.offload is None:
        offload = False
        if isinstance(source, Path):
            empty, _ = open_folder(source)
            offload = Estimate.of(empty, dtype, device).needs_offload(budget.free(device))
        budget = replace(budget, offload=offload)
    place = _HOST if budget.offload else device
    if isinstance(source, Path):
        networks = load_folder(source, place, dtype)
    else:
        networks = random_networks(source, place, dtype)
    if fuse:
        for_inference(networks, device, dtype, lambda: room_to_grow(budget.free(_HOST).host))
    return networks, budget


class Offload:
    """Brings parts to the device, one at a time and for one thread at a time; others wait, in no
    order. A worker has them wait in its own (`worker.device_lock`).

    Args:
        networks: on the host.
        device: where they work.
    """

    def __init__(self, networks: Networks, device: torch.device) -> None:
        coders = networks.autoencoder, networks.first_stage
        self._weights: dict[Part, list[_Weight]] = {
            "autoencoder": list(_weights(coders)),
            "denoiser": list(_weights((networks.unet, networks.encoder))),
        }
        self._device = device
        self._lock = threading.Lock()
        self.there: Part | None = None
        """The part on the device."""
        self.moves = 0
        """How often a part was brought there."""

    @contextmanager
    def on_device(self, part: Part) -> Iterator[None]:
        """Within, the part's networks are on the device."""
        with self._lock:
            if self.there != part:
                self._bring(part)
            yield

    def nbytes(self, weights: Weights) -> int:
        """Of these weights those on the device."""
        return 0 if self.there is None else int(getattr(weights, self.there))

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
            tensor = values if device is None else values.to(device)
            setattr(owner, name, nn.Parameter(tensor, requires_grad=False))
