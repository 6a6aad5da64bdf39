"""The other processes: how they come up, work and end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from models.compiled import Denoises
from models.errors import ModelError, PeerLost
from models.parent import end_with_parent
from models.spread.wire import Order, Wire, store

__all__ = ["Load", "Peers", "start"]

Load = Callable[[torch.device], Denoises]
"""Loads the weights on a device; is sent to other processes, so it must be picklable."""

LEAVE_S = 10.0


@dataclass(frozen=True)
class _Peer:
    device: str
    process: BaseProcess


class Peers:
    """Processes for all devices but the first; `with` ends them."""

    def __init__(self, peers: Sequence[_Peer], wire: Wire) -> None:
        self._peers = tuple(peers)
        self.wire = wire
        """To them; the first is number 1."""

    @property
    def names(self) -> list[str]:
        """Their devices."""
        return [peer.device for peer in self._peers]

    @property
    def pids(self) -> list[int | None]:
        return [peer.process.pid for peer in self._peers]

    def close(self) -> None:
        """Ends them, those that do not hear too."""
        for number, _ in enumerate(self._peers, 1):
            with suppress(PeerLost):
                self.wire.order_end(number)
        _end(self._peers, LEAVE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start(devices: Sequence[str], load: Load) -> Peers:
    """A process for each of the devices, with the weights loaded, ready to be called.

    `devices` are those beside this process' own.

    Raises:
        ModelError: a process could not load the weights; says why.
        PeerLost: it ended.
    """
    world = 1 + len(devices)
    found = store(0, world, first=True)
    context = get_context("spawn")
    peers: list[_Peer] = []
    try:
        pipes = []
        for rank, device in enumerate(devices, 1):
            ours, theirs = context.Pipe(duplex=False)
            # Daemons end with this process where it ends in an orderly way, and see to the rest
            # themselves.
            process = context.Process(
                target=_serve, args=(device, rank, world, found.port, load, theirs), daemon=True
            )
            process.start()
            theirs.close()
            peers.append(_Peer(device, process))
            pipes.append(ours)
        for peer, pipe in zip(peers, pipes, strict=True):
            _await_loaded(peer, pipe)
        return Peers(peers, Wire(found, 0, dict(enumerate(devices, 1))))
    except BaseException:
        _end(peers, 0.0)
        raise


def _await_loaded(peer: _Peer, pipe: Connection) -> None:
    wait([pipe, peer.process.sentinel])
    try:
        said = pipe.recv()
    except EOFError as error:
        raise PeerLost(f"The process of {peer.device} ended while it loaded weights.") from error
    if said is not None:
        raise ModelError(f"{peer.device}: {said}")


def _end(peers: Sequence[_Peer], patience_s: float) -> None:
    for peer in peers:
        peer.process.join(patience_s)
        if peer.process.is_alive():
            peer.process.kill()
            peer.process.join()


def _serve(device: str, rank: int, world: int, port: int, load: Load, said: Connection) -> None:
    """A peer's life."""
    # Ctrl-C reaches all processes of a terminal; the first one says what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    try:
        denoiser = load(torch.device(device))
    # Told to the first process, in whose terminal it belongs.
    except Exception as error:
        said.send(str(error).strip() or repr(error))
        return
    said.send(None)
    # The first process is gone, or asked to end: either way there is nothing more to do.
    with suppress(PeerLost):
        wire = Wire(store(port, world, first=False), rank, {0: "the first device"})
        while (order := wire.next_order(denoiser.dtype)) is not None:
            wire.answer(partial(_obey, denoiser, device, order))


def _obey(denoiser: Denoises, device: str, order: Order) -> Tensor:
    if order.noisy is None or order.lr is None:
        denoiser.warm(order.tiles, order.side)
        return torch.empty(0)
    context = None if order.context is None else order.context.to(device)
    return denoiser(order.noisy.to(device), order.lr.to(device), order.timesteps, context)
