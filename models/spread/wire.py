"""What the processes say to each other.

An order is ORDER numbers, and for PREDICT the tensors that they announce. An answer is two numbers,
how it ended and how many bytes follow: a prediction as float32, or an error's words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.errors import PeerLost
from models.memory import is_out_of_memory

__all__ = ["Order", "Wire", "store"]

# A peer has nothing to do while an image is decoded; one that is gone is noticed at once.
IDLE = timedelta(days=7)

END, WARM, PREDICT = range(3)
GOOD, FAILED, MEMORY = range(3)
ORDER = 7  # kind, tiles, channels, height, width, tokens and width of a context


@dataclass(frozen=True)
class Order:
    """Tiles to predict, or a number of them to prepare for; neither to end."""

    tiles: int
    side: int = 0
    noisy: Tensor | None = None
    lr: Tensor | None = None
    timesteps: tuple[int, ...] = ()
    context: Tensor | None = None


def store(port: int, world: int, *, first: bool) -> Any:
    """Where processes find each other, on this host only; port 0 is any, to be read from it."""
    made = dist.TCPStore  # type: ignore[attr-defined]  # documented, and not in its __all__
    return made("127.0.0.1", port, world, is_master=first, wait_for_workers=False)


class Wire:
    """One process' end: a group of its own, beside whatever else uses torch.distributed."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        # On hosts whose own name leads nowhere, gloo would find no interface.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # Without a default group, of which a process has one; torch.distributed.send and recv call
        # the same methods.
        self._group: Any = dist.ProcessGroupGloo(store, rank, world, IDLE)

    # The first process

    def give(
        self,
        peer: int,
        noisy: Tensor,
        lr: Tensor,
        timesteps: Sequence[int],
        context: Tensor | None,
    ) -> None:
        """Tiles for a peer, as a `Denoiser` takes them. Raises PeerLost."""
        text = (0, 0) if context is None else context.shape[1:]
        self._send(peer, torch.tensor([PREDICT, *noisy.shape, *text]))
        self._send(peer, noisy)
        self._send(peer, lr)
        self._send(peer, torch.tensor(timesteps))
        if context is not None:
            self._send(peer, context)

    def order_warm(self, peer: int, tiles: int, side: int) -> None:
        """To prepare for calls of so many tiles. Raises PeerLost."""
        self._send(peer, torch.tensor([WARM, tiles, 0, side, side, 0, 0]))

    def order_end(self, peer: int) -> None:
        """Raises PeerLost."""
        self._send(peer, torch.tensor([END, 0, 0, 0, 0, 0, 0]))

    def await_answer(self, peer: int, shape: Sequence[int], name: str) -> Tensor:
        """A peer's prediction, float32 on the host.

        Raises:
            MemoryError: it has too little.
            RuntimeError: its networks failed.
            PeerLost: it is gone.
        """
        told, size = self._receive(peer, (2,), torch.long, name).tolist()
        body = self._receive(peer, (size,), torch.uint8, name)
        if told == GOOD:
            return body.view(torch.float32).reshape(tuple(shape))
        words = bytes(body.tolist()).decode()
        if told == MEMORY:
            raise MemoryError(f"{name}: {words}")
        raise RuntimeError(f"{name}: {words}")

    # The others

    def next_order(self, dtype: torch.dtype) -> Order | None:
        """From the first process; None to end. Raises PeerLost."""
        numbers = self._receive(0, (ORDER,), torch.long).tolist()
        kind, tiles, channels, height, width, tokens, wide = numbers
        if kind == END:
            return None
        if kind == WARM:
            return Order(tiles, height)
        shape = (tiles, channels, height, width)
        return Order(
            tiles,
            noisy=self._receive(0, shape, dtype),
            lr=self._receive(0, shape, dtype),
            timesteps=tuple(self._receive(0, (tiles,), torch.long).tolist()),
            context=self._receive(0, (tiles, tokens, wide), dtype) if tokens else None,
        )

    def answer(self, work: Callable[[], Tensor]) -> None:
        """Sends what the work gives, or why it gives nothing. Raises PeerLost."""
        try:
            told, body = GOOD, work().cpu().float().contiguous().flatten().view(torch.uint8)
        # Whatever it is, it belongs to the image and not to this process.
        except Exception as error:
            told = MEMORY if is_out_of_memory(error) else FAILED
            words = (str(error).strip() or repr(error)).encode()
            body = torch.frombuffer(bytearray(words), dtype=torch.uint8)
        self._send(0, torch.tensor([told, len(body)]))
        self._send(0, body)

    def _send(self, peer: int, tensor: Tensor) -> None:
        # As bytes: gloo does not know every dtype.
        body = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        if body.numel():
            _done(lambda: self._group.send([body], peer, 0), f"process {peer}")

    def _receive(
        self, peer: int, shape: tuple[int, ...], dtype: torch.dtype, name: str | None = None
    ) -> Tensor:
        found = torch.empty(shape, dtype=dtype)
        if found.numel():
            body = found.flatten().view(torch.uint8)
            _done(lambda: self._group.recv([body], peer, 0), name or f"process {peer}")
            found = body.view(dtype).reshape(shape)
        return found


def _done(begin: Callable[[], Any], name: str) -> None:
    try:
        begin().wait()
    # gloo raises nothing more special; a connection is all that can fail here.
    except RuntimeError as error:
        raise PeerLost(f"The process of {name} is gone: {str(error).splitlines()[0]}") from error
