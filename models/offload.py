"""Offload: networks on their device one part at a time.

The autoencoder works at an image's beginning and end, the denoiser (UNet and time-aware encoder)
in between, and neither while the other does. A device too small for both holds one at a time; the
weights of all wait on the host, where they have their place for good: what leaves the device is
dropped, not copied back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from models.networks.bundle import Networks

Part = Literal["autoencoder", "denoiser"]


class Offload:
    """Brings parts of networks on the host to the device, one at a time and for one thread at a
    time; others wait, in no order. A worker has them wait in its own (`worker.device_lock`)."""

    def __init__(self, networks: Networks, device: torch.device) -> None:
        parts: dict[Part, tuple[nn.Module | None, ...]] = {
            "autoencoder": (networks.autoencoder, networks.first_stage),
            "denoiser": (networks.unet, networks.encoder),
        }
        # Of each part: a module, a parameter's name in it, and its values on the host.
        self._weights: dict[Part, list[tuple[nn.Module, str, Tensor]]] = {
            part: [
                (owner, name, parameter.data)
                for module in modules
                if module is not None
                for owner in module.modules()
                for name, parameter in owner.named_parameters(recurse=False)
            ]
            for part, modules in parts.items()
        }
        self._device = device
        self._lock = threading.Lock()
        self.there: Part | None = None
        """The part on the device."""

    @contextmanager
    def on_device(self, part: Part) -> Iterator[None]:
        """Within, the part's networks are on the device."""
        with self._lock:
            if self.there != part:
                self._bring(part)
            yield

    def _bring(self, part: Part) -> None:
        """A part that does not fit leaves the device empty."""
        if self.there is not None:
            self._place(self.there, None)
        self.there = None
        try:
            self._place(part, self._device)
        except BaseException:
            self._place(part, None)
            raise
        self.there = part

    def _place(self, part: Part, device: torch.device | None) -> None:
        """On the device; None lets go of it again."""
        # Weights outlive the call in which they come, so they must be ordinary tensors.
        with torch.inference_mode(False):
            for owner, name, values in self._weights[part]:
                tensor = values if device is None else values.to(device)
                setattr(owner, name, nn.Parameter(tensor, requires_grad=False))
