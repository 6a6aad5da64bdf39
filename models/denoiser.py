"""Network calls: tiles of any number of jobs through encoder and UNet, on one device.

Eager, or by compiled callables (`models.compiler`): one for each power of two of tiles, to which a
call is filled up.

Low precision: weights and activations have the weights' dtype. In float32 are, compiled or not, the
statistics of group and layer norms and the softmax of attention, which their kernels widen for
themselves because sums over thousands of bfloat16 numbers lose their last ones; the table of time
embeddings is rounded once from float64; predictions leave in float32 for the scheduler, whose
differences of nearly equal numbers a step's 8 bits would not carry.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models.compiler import CompiledCalls, CompileOptions
from models.memory import Fallbacks, half, until_it_fits
from models.networks.bundle import Networks, channels_last
from models.sampling import StepRequest

log = logging.getLogger(__name__)

# Weights times latent pixels up to which a processor is quicker with one thread: the hundreds of
# short loops of a small call wait longer for a second one than it saves. 40 x 40 latent pixels of
# `tiny` take 0.08 s, with a second thread 0.11 s; 64 x 64 the same with both.
_ONE_THREAD = 2**34


@dataclass(frozen=True)
class TileBatch:
    """Tiles of one network call, each at its own timestep."""

    noisy: Tensor
    """(n, c, h, w)"""
    lr: Tensor
    """LR latent of the same places, (n, c, h, w)"""
    timesteps: tuple[int, ...]
    context: Tensor | None
    """(n, tokens, width); None is the empty prompt's, for all"""

    @classmethod
    def of(cls, requests: Sequence[StepRequest], empty: Tensor) -> TileBatch:
        """All tiles of these requests, in their order; they must have one shape.

        `empty`: context of the empty prompt (1, tokens, width), of the networks' dtype.
        """
        noisy = torch.cat([r.noisy for r in requests]).to(empty.dtype)
        lr = torch.cat([r.lr for r in requests]).to(empty.dtype)
        timesteps = tuple(r.timestep for r in requests for _ in range(len(r)))
        if all(r.context is None for r in requests):
            return cls(noisy, lr, timesteps, None)
        contexts = [
            empty.expand(len(r), -1, -1) if r.context is None else r.context for r in requests
        ]
        return cls(
            noisy, lr, timesteps, torch.cat([c.to(noisy.device, empty.dtype) for c in contexts])
        )

    def __len__(self) -> int:
        return len(self.timesteps)

    def part(self, start: int, stop: int) -> TileBatch:
        """Tiles `start` to `stop`, as views; no more than there are."""
        cut = slice(start, stop)
        return self._change(lambda x: x[cut], self.timesteps[cut])

    def to(self, device: torch.device) -> TileBatch:
        """The same on that device."""
        return self._change(lambda x: x.to(device), self.timesteps)

    def pad(self, size: int) -> TileBatch:
        """`size` tiles: the last one again and again."""
        missing = size - len(self)
        if not missing:
            return self
        return self._change(
            lambda x: torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]),
            self.timesteps + missing * self.timesteps[-1:],
        )

    def _change(self, change: Callable[[Tensor], Tensor], timesteps: tuple[int, ...]) -> TileBatch:
        context = None if self.context is None else change(self.context)
        return TileBatch(change(self.noisy), change(self.lr), timesteps, context)


class Denoiser:
    """Makes network calls; several threads may.

    A call that runs out of memory is halved, and calls stay that small. What cannot be compiled is
    computed eagerly: said in the log once for each reason and size, and counted call by call.

    The networks are on the device, unless with `offload` they leave it, which a compiled call does
    not survive; and fused, or compiled calls cannot leave the context out.
    """

    def __init__(
        self,
        networks: Networks,
        device: torch.device,
        options: CompileOptions,
        fallbacks: Fallbacks,
        *,
        offload: bool,
    ) -> None:
        self._networks, self._device, self._offload = networks, device, offload
        self._fixed_batch = options.fixed_batch
        self._limit: int | None = None
        # Of the tiles that calls are compiled for, latent pixels; None until that is done.
        self._side: int | None = None
        self.devices = (device,)
        self.fallbacks = fallbacks
        self.compiles = options.suits(device)
        """Whether calls are to be compiled"""
        self.compiled_calls = CompiledCalls(device)

        parts = (networks.unet, networks.encoder)
        self._weights = sum(p.numel() for part in parts for p in part.parameters())
        self._one_thread = _one_thread() if device.type == "cpu" else None

        def whole(noisy: Tensor, lr: Tensor, t: Tensor) -> tuple[Tensor]:
            """What is compiled: encoder and UNet, with the empty prompt."""
            return (networks.denoise(noisy, lr, t, None).float(),)

        self._function = whole
        if self.compiles:
            options.open_cache()
            for part in parts:
                channels_last(part)

    def room(self, tiles: int) -> int:
        """Tiles of a call where memory has room for so many."""
        return self._sizes(tiles)[-1]

    def compilations(self, tiles: int, side: int) -> list[Callable[[], None]]:
        """What compiles every size of call, up to `tiles` tiles of `side` latent pixels, a size
        each; none where nothing is to be compiled."""
        if not self.compiles or self._offload:
            return []
        self._side = side
        return [partial(self._compile, size, side) for size in self._sizes(tiles)]

    def _sizes(self, most: int) -> list[int]:
        """Tiles of a call, smallest first, where memory has room for so many."""
        if self._fixed_batch is not None:
            return [self._fixed_batch]
        return [1 << power for power in range(most.bit_length())] if self.compiles else [most]

    @torch.inference_mode()
    def denoise(self, tiles: TileBatch) -> Tensor:
        """As `Networks.predict`, but float32 and of any number of tiles, from anywhere; on the
        device.

        Raises:
            MemoryError, RuntimeError: not even a tile alone fits, or the networks failed.
        """
        n = len(tiles)

        def run(size: int) -> Tensor:
            parts = (tiles.part(i, i + size).to(self._device) for i in range(0, n, size))
            return torch.cat([self._call(part) for part in parts])

        def smaller(size: int) -> int | None:
            # With a fixed batch half the tiles would take the same memory.
            return None if self._fixed_batch is not None else half(size)

        def shrink(before: int, after: int) -> None:
            self._limit = min(self._limit or before, after)
            self.fallbacks.note("tile_batch", before, after)

        limit = self._fixed_batch or self._limit or n
        return until_it_fits(run, min(n, limit), smaller, shrink)[0]

    def _call(self, tiles: TileBatch) -> Tensor:
        compiles, n = self.compiles and self._can_compile(tiles), len(tiles)
        full = tiles.pad(self._fixed_batch or (bucket_of(n) if compiles else n))
        times = torch.tensor(full.timesteps, device=self._device)
        if compiles:
            results = self.compiled_calls("whole", self._function, full.noisy, full.lr, times)
            if results is not None:
                return results[0][:n]
            self.fallbacks.add("eager_failure")
        pixels = full.noisy[:, 0].numel()
        if self._one_thread is not None and self._weights * pixels <= _ONE_THREAD:
            return self._one_thread.submit(self._eager, full, times).result()[:n]
        return self._eager(full, times)[:n]

    @torch.inference_mode()
    def _eager(self, tiles: TileBatch, times: Tensor) -> Tensor:
        return self._networks.denoise(tiles.noisy, tiles.lr, times, tiles.context).float()

    def _can_compile(self, tiles: TileBatch) -> bool:
        """Whether a call that is to be compiled can be; what cannot is counted."""
        if self._offload:
            what, why = "eager_offload", "the networks do not stay on the device"
        elif tiles.context is not None:
            # A graph for each would double what is compiled for the few calls that need it.
            what, why = "eager_prompt", "a tile has a prompt"
        elif self._side is not None and tiles.noisy.shape[2:] != (self._side, self._side):
            # A small image; compiling each size would take minutes.
            what, why = "eager_size", f"a tile has not {self._side} x {self._side} latent pixels"
        else:
            return True
        if not self.fallbacks[what]:
            log.warning("calls are not compiled: %s; they are computed eagerly", why)
        self.fallbacks.add(what)
        return False

    def _compile(self, size: int, side: int) -> None:
        start = time.monotonic()
        shape = (size, self._networks.config.unet.in_channels, side, side)
        blank = torch.zeros(shape, device=self._device, dtype=self._networks.context.dtype)
        self.denoise(TileBatch(blank, blank, (0,) * size, None))
        log.info("calls of %d tiles are ready after %.1f s", size, time.monotonic() - start)


def _one_thread() -> ThreadPoolExecutor:
    """A thread that computes without others.

    PyTorch's number of threads is each thread's own. When a thread first asks or computes, it takes
    over what any has set last, and so the new one has to ask before it sets.
    """
    threads = torch.get_num_threads()
    executor = ThreadPoolExecutor(1, "small-calls")
    executor.submit(torch.get_num_threads).result()
    executor.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)
    return executor


def bucket_of(tiles: int) -> int:
    """The smallest power of two that so many tiles fit into."""
    return 1 << (tiles - 1).bit_length()
