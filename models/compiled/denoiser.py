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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from models.arithmetic import arithmetic
from models.compiled.buckets import bucket_of, buckets, padded, room
from models.compiled.compiling import Compiling
from models.memory import is_out_of_memory
from models.networks.bundle import Networks

__all__ = ["Denoiser", "Denoises", "channels_last"]

log = logging.getLogger(__name__)

_Run = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        """Calls that were to be compiled and were not, by reason: offload, prompt or failure."""

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
        self._compiled: dict[tuple[int, int, int], _Run] = {}
        self._failed: set[tuple[int, int, int]] = set()
        self._told: set[str] = set()
        self.eager_calls: Counter[str] = Counter()
        self.wanted = compiling.wanted(device)
        """Whether calls are to be compiled."""
        self._offloaded = offloaded
        # CUDA graphs belong to the thread that recorded them.
        self._thread = (
            ThreadPoolExecutor(1, "denoiser") if self.wanted and device.type == "cuda" else None
        )
        if self.wanted:
            if compiling.cache is not None:
                _keep_in(compiling.cache)
            for part in (networks.unet, networks.encoder):
                channels_last(part)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._networks.context.dtype

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
        for size in [self._fixed] if self._fixed is not None else buckets(tiles):
            began = time.monotonic()
            tile = torch.zeros((size, channels, side, side), device=self._device, dtype=self.dtype)
            self(tile, tile, [0] * size, None)
            log.info("calls of %d tiles are ready after %.1f s", size, time.monotonic() - began)

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

    def _call(
        self, noisy: Tensor, lr: Tensor, timesteps: Sequence[int], context: Tensor | None
    ) -> Tensor:
        tiles = len(noisy)
        reason = self._reason(context)
        size = tiles
        if self._fixed is not None:
            size = self._fixed
        elif self.wanted and reason is None:
            size = bucket_of(tiles)
        times = [*timesteps, *[timesteps[-1]] * (size - tiles)]
        noisy, lr = padded(noisy, size), padded(lr, size)
        if self.wanted and reason is None:
            out = self._run(noisy, lr, times)
            if out is not None:
                return out[:tiles]
            reason = "failure"
        if reason is not None:
            self.eager_calls[reason] += 1
        context = None if context is None else padded(context, size)
        with arithmetic(self._device, noisy.dtype):
            return self._networks.predict(noisy, lr, times, context)[:tiles].float()

    def _reason(self, context: Tensor | None) -> str | None:
        """Why a call that was to be compiled is not."""
        if not self.wanted:
            return None
        if self._offloaded:
            self._tell("offload", "the networks do not stay on the device")
            return "offload"
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

    def _run(self, noisy: Tensor, lr: Tensor, timesteps: Sequence[int]) -> Tensor | None:
        """By a compiled callable; None if there is none of this size."""
        t = torch.tensor(timesteps, device=noisy.device)
        # Another layout would be another graph.
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        lr = lr.contiguous(memory_format=torch.channels_last)
        if self._thread is not None:
            return self._thread.submit(self._run_here, noisy, lr, t).result()
        return self._run_here(noisy, lr, t)

    @torch.inference_mode()
    def _run_here(self, noisy: Tensor, lr: Tensor, t: Tensor) -> Tensor | None:
        key = (noisy.shape[0], noisy.shape[2], noisy.shape[3])
        with self._lock:
            if key in self._failed:
                return None
            run = self._compiled.get(key)
            # Compiling is not for two threads at once.
            if run is None:
                return self._first(key, noisy, lr, t)
        return self._made(run, noisy, lr, t)

    def _first(self, key: tuple[int, int, int], *arguments: Tensor) -> Tensor | None:
        run = _callable(self._networks, self._device, self.dtype, key[0])
        try:
            out = self._made(run, *arguments)
        # torch raises errors of many kinds for a missing compiler, a full disk, a bug of its own.
        # Where it is none of these but the device's, the eager call meets it too, and raises it.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._failed.add(key)
            log.warning(
                "calls of %d tiles could not be compiled; they are computed eagerly: %s",
                key[0],
                str(error).strip().splitlines()[0] if str(error).strip() else repr(error),
                exc_info=log.isEnabledFor(logging.DEBUG),
            )
            return None
        self._compiled[key] = run
        return out

    def _made(self, run: _Run, *arguments: Tensor) -> Tensor:
        if self._device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # has none
        # The next call writes over what a CUDA graph returns.
        return run(*arguments).to(torch.float32, copy=True)


def channels_last(part: nn.Module) -> None:
    """Lays the kernels of convolutions out so; their results follow.

    A kernel is a `weight` of four dimensions. Keys and values of the constant context have four as
    well, and attention of keys so laid out is none of the fused ones.
    """
    for name, parameter in part.named_parameters():
        if parameter.ndim == 4 and name.endswith(".weight"):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


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


def _callable(networks: Networks, device: torch.device, dtype: torch.dtype, size: int) -> _Run:
    """Compiled for one size of call."""
    best = arithmetic(device, dtype)

    def run(noisy: Tensor, lr: Tensor, t: Tensor) -> Tensor:
        # Within, so that the graph has it.
        with best:
            return networks.denoise(noisy, lr, t, None)

    # Of one piece of code torch compiles 8 sizes, then no more: each gets a piece of its own.
    own = FunctionType(
        run.__code__.replace(co_name=f"denoise_{size}"),
        run.__globals__,
        f"denoise_{size}",
        None,
        run.__closure__,
    )
    options: dict[str, str | int | bool | Callable[..., Any]] = {}
    if device.type == "cuda":
        options["triton.cudagraphs"] = True
    # Not typed beyond "a callable".
    return cast("_Run", torch.compile(own, fullgraph=True, dynamic=False, options=options or None))
