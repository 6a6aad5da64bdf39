"""The first process' side: calls like those of one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from models.compiled import Denoises
from models.spread.peers import Peers

__all__ = ["Spread", "split"]


class Spread:
    """In the place of a `Denoiser`: makes a call's first tiles on its own device and has the
    others made by peers, all at the same time. One call at a time.

    Args:
        own: of this process.
        peers: the other processes.
    """

    def __init__(self, own: Denoises, peers: Peers) -> None:
        self._own, self._wire = own, peers.wire
        self._others = range(1, 1 + len(peers.names))
        self.wanted = own.wanted
        """Whether calls are to be compiled."""
        self.apart = None
        """Each device encodes its own tiles, with each call."""

    @property
    def dtype(self) -> torch.dtype:
        """As of `Denoiser`."""
        return self._own.dtype

    @property
    def eager_calls(self) -> Counter[str]:
        """As of `Denoiser`; of this process."""
        return self._own.eager_calls

    def room(self, tiles: int) -> int:
        """Tiles of a call where each device has room for so many."""
        return self._own.room(tiles) * (1 + len(self._others))

    def warm(self, tiles: int, side: int) -> None:
        """Compiles on every device what calls of up to so many tiles in all need there."""
        each = -(-tiles // (1 + len(self._others)))
        for number in self._others:
            self._wire.order_warm(number, each, side)
        self._own.warm(each, side)
        for number in self._others:
            self._wire.await_answer(number, (0,))

    def __call__(
        self, noisy: Tensor, lr: Tensor, timesteps: Sequence[int], context: Tensor | None
    ) -> Tensor:
        """As of `Denoiser`.

        Raises:
            PeerLost: a process is gone.
            MemoryError, RuntimeError: what happened on any of the devices.
        """
        cuts = split(len(noisy), 1 + len(self._others))
        asked = [(n, cut) for n, cut in enumerate(cuts) if n and cut.stop > cut.start]
        for number, cut in asked:
            text = None if context is None else context[cut]
            self._wire.give(number, noisy[cut], lr[cut], timesteps[cut], text)
        parts: list[Tensor] = []
        errors: list[BaseException] = []
        own = cuts[0]
        text = None if context is None else context[own]
        try:
            parts.append(self._own(noisy[own], lr[own], timesteps[own], text))
        # The others' answers are on their way: they have to be heard before anything is asked.
        except Exception as error:
            errors.append(error)
        for number, cut in asked:
            try:
                found = self._wire.await_answer(number, noisy[cut].shape)
                parts.append(found.to(noisy.device))
            except (MemoryError, RuntimeError) as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return torch.cat(parts)


def split(tiles: int, among: int) -> list[slice]:
    """As evenly as it goes, the first ones having one more."""
    least, more = divmod(tiles, among)
    cuts, start = [], 0
    for number in range(among):
        stop = start + least + (number < more)
        cuts.append(slice(start, stop))
        start = stop
    return cuts
