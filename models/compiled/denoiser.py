"""Encoder and UNet for a batch of tiles, by compiled callables where that was asked for.

Low precision: weights and activations have the weights' dtype. In float32 are, compiled or not, the
statistics of group and layer norms and the softmax of attention, which their kernels widen for
themselves because sums over thousands of bfloat16 numbers lose their last ones; the table of time
embeddings is rounded once from float64; predictions leave in float32 for the scheduler, whose
differences of nearly equal numbers a step's 8 bits would not carry.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from models.arithmetic import arithmetic
from models.compiled.buckets import bucket_of, buckets, padded, room
from models.compiled.compiling import Compiling
from models.compiled.graphs import Graphs
from models.networks.bundle import Networks
from models.networks.layout import channels_last

__all__ = ["Apart", "Denoiser", "Denoises"]

log = logging.getLogger(__name__)

_LAST = torch.channels_last
_Function = Callable[..., tuple[Tensor, ...]]


class Apart(Protocol):
    """Makes calls of the encoder for steps to come, and calls of the UNet with its features."""

    rows_ahead: int
    """Of an encoder's call, each the tile at a timestep"""

    def encode(self, lr: Tensor, timesteps: Sequence[int], size: int) -> list[Tensor]:
        """The encoder alone: its features, finest first, of the weights' dtype.

        `size`: rows of the call where it is compiled, the missing ones being filled up.
        """

    def denoise(self, noisy: Tensor, timestep: int, features: Sequence[Tensor]) -> Tensor:
        """The UNet alone, of one tile with the empty prompt and these features; float32."""


class Denoises(Protocol):
    """Who makes network calls: a `Denoiser`, or several devices together (`models.spread`)."""

    @property
    def wanted(self) -> bool:
        """Whether calls are to be compiled."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    @property
    def eager_calls(self) -> Counter[str]:
        """Calls that were to be compiled and were not, by reason: offload, compiling (not yet),
        prompt or failure."""

    @property
    def apart(self) -> Apart | None:
        """Encoder and UNet in calls of their own, where that may be faster."""

    def room(self, tiles: int) -> int:
        """Tiles of a call where a device's memory has room for so many."""

    def warm(self, tiles: int, side: int) -> None:
        """Compiles every size of call, up to `tiles` tiles of `side` cells, before it is needed."""

    def __call__(
        self, noisy: Tensor, lr: Tensor, timesteps: Sequence[int], context: Tensor | None
    ) -> Tensor:
        """As `Networks.predict`, but float32: of any number of tiles."""


class Denoiser:
    """Makes network calls; several threads may.

    What cannot be compiled is computed eagerly: said in the log once for each reason and size, and
    counted call by call in `eager_calls`.

    Args:
        networks: on the device; folded, or compiled calls cannot leave the context out.
        device: where they compute.
        compiling: whether and how.
        offloaded: whether the networks leave the device, which a compiled call does not survive.
    """

    def __init__(
        self, networks: Networks, device: torch.device, compiling: Compiling, *, offloaded: bool
    ) -> None:
        self._networks, self._device = networks, device
        self._fixed = compiling.fixed_batch
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self.eager_calls: Counter[str] = Counter()
        self.wanted = compiling.wanted(device)
        """Whether calls are to be compiled."""
        self._offloaded = offloaded
        self.rows_ahead = 0 if offloaded else compiling.rows_ahead(device)
        """As of `Apart`; none below 2."""
        self.graphs = Graphs(device)
        """What calls are compiled by"""
        self._whole, self._encode, self._denoise = _functions(networks, device)
        if self.wanted:
            if compiling.cache is not None:
                _keep_in(compiling.cache)
            for part in (networks.unet, networks.encoder):
                channels_last(part)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._networks.context.dtype

    @property
    def apart(self) -> Denoiser | None:
        """Itself, where the encoder may go ahead."""
        return self if self.rows_ahead > 1 and not self.graphs.deferred else None

    def room(self, tiles: int) -> int:
        """Tiles of a call where memory has room for so many."""
        if self._fixed is not None:
            return self._fixed
        return room(tiles) if self.wanted else tiles

    def warm(self, tiles: int, side: int) -> None:
        """Compiles every size of call, up to `tiles` tiles of `side` cells, before it is needed."""
        if not self.wanted or self._offloaded:
            return
        channels = self._networks.config.unet.in_channels

        def blank(rows: int) -> Tensor:
            return torch.zeros((rows, channels, side, side), device=self._device, dtype=self.dtype)

        for size in [self._fixed] if self._fixed is not None else buckets(tiles):
            began = time.monotonic()
            self(blank(size), blank(size), [0] * size, None)
            log.info("calls of %d tiles are ready after %.1f s", size, time.monotonic() - began)
        # A row of the encoder takes less memory than a tile of a call, for which there is room.
        self.rows_ahead = min(self.rows_ahead, room(tiles))
        if self.rows_ahead > 1:
            began, rows = time.monotonic(), self.rows_ahead
            features = self.encode(blank(rows), [0] * rows, rows)
            self.denoise(blank(1), 0, [feature[:1] for feature in features])
            log.info(
                "the encoder's calls of %d steps are ready after %.1f s",
                rows,
                time.monotonic() - began,
            )

    @torch.inference_mode()
    def __call__(
        self, noisy: Tensor, lr: Tensor, timesteps: Sequence[int], context: Tensor | None
    ) -> Tensor:
        """As `Networks.predict`, but float32: of any number of tiles."""
        if self._fixed is None:
            return self._call(noisy, lr, timesteps, context)
        parts = []
        for start in range(0, len(noisy), self._fixed):
            cut = slice(start, start + self._fixed)
            text = None if context is None else context[cut]
            parts.append(self._call(noisy[cut], lr[cut], timesteps[cut], text))
        return torch.cat(parts)

    @torch.inference_mode()
    def encode(self, lr: Tensor, timesteps: Sequence[int], size: int) -> list[Tensor]:
        """As of `Apart`."""
        rows = len(lr)
        size = size if self.wanted else rows
        made = self._made("encode", self._encode, padded(lr, size), self._times(timesteps, size))
        return [feature[:rows] for feature in made]

    @torch.inference_mode()
    def denoise(self, noisy: Tensor, timestep: int, features: Sequence[Tensor]) -> Tensor:
        """As of `Apart`."""
        [out] = self._made("denoise", self._denoise, noisy, self._times([timestep], 1), *features)
        return out

    def _call(
        self, noisy: Tensor, lr: Tensor, timesteps: Sequence[int], context: Tensor | None
    ) -> Tensor:
        tiles = len(noisy)
        size = tiles
        if self._fixed is not None:
            size = self._fixed
        elif self.wanted and self._reason(context) is None:
            size = bucket_of(tiles)
        times = self._times(timesteps, size)
        given = padded(noisy, size), padded(lr, size), times
        if context is None:
            [out] = self._made("whole", self._whole, *given)
            return out[:tiles]
        self._count(self._reason(context))
        with arithmetic(self._device, noisy.dtype):
            text = padded(context, size)
            return self._networks.denoise(*given, text)[:tiles].float()

    def _times(self, timesteps: Sequence[int], size: int) -> Tensor:
        missing = size - len(timesteps)
        return torch.tensor([*timesteps, *[timesteps[-1]] * missing], device=self._device)

    def _made(self, name: str, function: _Function, *arguments: Tensor) -> tuple[Tensor, ...]:
        """By a compiled callable, or eagerly."""
        reason = self._reason(None)
        if self.wanted and reason is None:
            # Another layout would be another graph.
            laid = (x.contiguous(memory_format=_LAST) if x.ndim == 4 else x for x in arguments)
            out = self.graphs(name, function, *laid)
            if out is not None:
                return out
            reason = "failure"
        self._count(reason)
        return function(*arguments)

    def _count(self, reason: str | None) -> None:
        if reason is not None:
            self.eager_calls[reason] += 1

    def _reason(self, context: Tensor | None) -> str | None:
        """Why a call that was to be compiled is not."""
        if not self.wanted:
            return None
        if self._offloaded:
            self._tell("offload", "the networks do not stay on the device")
            return "offload"
        if self.graphs.deferred:
            return "compiling"
        if context is not None:
            # A graph for each would double what is compiled for the few calls that need it.
            self._tell("prompt", "a tile has a prompt")
            return "prompt"
        return None

    def _tell(self, reason: str, why: str) -> None:
        with self._lock:
            known = reason in self._told
            self._told.add(reason)
        if not known:
            log.warning("calls are not compiled: %s; they are computed eagerly", why)


def _functions(networks: Networks, device: torch.device) -> tuple[_Function, _Function, _Function]:
    """What can be compiled: encoder and UNet, and each alone."""
    # Entered within, so that graphs have it.
    best = arithmetic(device, networks.context.dtype)

    def whole(noisy: Tensor, lr: Tensor, t: Tensor) -> tuple[Tensor]:
        with best:
            return (networks.denoise(noisy, lr, t, None).float(),)

    def encode(lr: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        with best:
            return tuple(networks.encoder(lr, t))

    def denoise(noisy: Tensor, t: Tensor, *features: Tensor) -> tuple[Tensor]:
        with best:
            return (networks.denoise_guided(noisy, t, None, features).float(),)

    return whole, encode, denoise


def _keep_in(folder: Path) -> None:
    """Has torch keep what it compiles there, instead of where the system's temporary files are."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning(
            "what is compiled cannot be kept in %s (%s): the next start compiles again",
            folder,
            error.strerror,
        )
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
