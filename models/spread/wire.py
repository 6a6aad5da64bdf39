"""What the processes say to each other.

An order is ORDER numbers, and for PREDICT the tensors that they announce. An answer is two numbers,
how it ended and how many bytes follow: a prediction as float32, or an error's words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.errors import PeerLost
from models.memory import is_out_of_memory

__all__ = ["Order", "Wire", "store"]

# For the first process to connect to one whose weights are loaded.
CONNECT = timedelta(seconds=60)
# A peer has nothing to do while another one loads or an image is decoded: it ends when the first
# process does, and not by time. One that is gone after it has connected is noticed at once.
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
    """One process' end of its connections: the first one's to all others, theirs to the first.

    Each connection is a group of two, so that no process waits for one that it has nothing to say
    to; they stand beside whatever else uses torch.distributed.

    Args:
        store: where they find each other.
        rank: this process' number.
        others: whom to connect to, by number, as errors name them.

    Raises:
        PeerLost: a process is gone before it has connected.
    """

    def __init__(self, store: Any, rank: int, others: Mapping[int, str]) -> None:
        # On hosts whose own name leads nowhere, gloo would find no interface.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # In a group the first process is 0, the other one 1.
        self._there = 0 if rank else 1
        self._names = dict(others)
        limit = IDLE if rank else CONNECT
        self._groups = {
            other: _group(f"{max(rank, other)}", store, min(rank, 1), limit, name)
            for other, name in others.items()
        }

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

    def await_answer(self, peer: int, shape: Sequence[int]) -> Tensor:
        """A peer's prediction, float32 on the host.

        Raises:
            MemoryError: it has too little.
            RuntimeError: its networks failed.
            PeerLost: it is gone.
        """
        told, size = self._receive(peer, (2,), torch.long).tolist()
        body = self._receive(peer, (size,), torch.uint8)
        if told == GOOD:
            return body.view(torch.float32).reshape(tuple(shape))
        words = bytes(body.tolist()).decode()
        kind = MemoryError if told == MEMORY else RuntimeError
        raise kind(f"{self._names[peer]}: {words}")

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
            group = self._groups[peer]
            _done(lambda: group.send([body], self._there, 0), self._names[peer])

    def _receive(self, peer: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        found = torch.empty(shape, dtype=dtype)
        if found.numel():
            body = found.flatten().view(torch.uint8)
            group = self._groups[peer]
            _done(lambda: group.recv([body], self._there, 0), self._names[peer])
            found = body.view(dtype).reshape(shape)
        return found


def _group(key: str, store: Any, place: int, limit: timedelta, name: str) -> Any:
    """Of two processes. Not the default group, of which a process has one; torch.distributed.send
    and recv call the same methods of that."""
    prefixed = dist.PrefixStore  # type: ignore[attr-defined]  # as TCPStore
    try:
        return dist.ProcessGroupGloo(prefixed(key, store), place, 2, limit)
    except RuntimeError as error:
        raise _lost(name, error) from error


def _done(begin: Callable[[], Any], name: str) -> None:
    try:
        begin().wait(IDLE)
    # gloo raises nothing more special; a connection is all that can fail here.
    except RuntimeError as error:
        raise _lost(name, error) from error


def _lost(name: str, error: RuntimeError) -> PeerLost:
    return PeerLost(f"The process of {name} is gone: {str(error).splitlines()[0]}")
