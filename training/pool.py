"""The training pair pool of Real-ESRGAN (arXiv 2107.10833, section 4.1).

Where a batch shares one draw of the degradation, as is quick on a GPU, its images are too alike.
The pool keeps pairs of many batches; what a step gets is drawn from all of them, and the newly
made pairs take their places.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["PairPool"]

_Place = tuple[int, int]  # number of the batch, place in it


class PairPool:
    """What a step gets follows from its number alone: a resumed run makes the pairs anew that the
    interrupted one had kept.

    Args:
        make: batch number -> the pair of tensors, each (n, ...), the same for the same number.
        size: pairs kept, a multiple of the batch.
        batch: n.
        seed: of the drawing.
    """

    def __init__(
        self, make: Callable[[int], tuple[Tensor, Tensor]], size: int, batch: int, seed: int
    ) -> None:
        if size < batch or size % batch:
            raise ValueError(f"the pool holds {size} pairs; it must be a multiple of {batch}")
        self._make, self._size, self._batch, self._seed = make, size, batch, seed
        self._next = 0
        self._kept: dict[_Place, tuple[Tensor, Tensor]] = {}
        self._order: list[_Place] = []

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The pairs of one step."""
        if step != self._next:
            self._seek(step)
        self._next = step + 1
        self._keep(step, range(self._batch))
        pairs = [self._kept[place] for place in self._draw(step)]
        live = set(self._order)
        self._kept = {place: pair for place, pair in self._kept.items() if place in live}
        return torch.stack([high for high, _ in pairs]), torch.stack([low for _, low in pairs])

    def _draw(self, step: int) -> list[_Place]:
        """What the step gets; afterwards the order is as the next step finds it."""
        fresh = [(step, at) for at in range(self._batch)]
        if len(self._order) < self._size:
            self._order += fresh
            return fresh
        slots = random.Random(self._seed * 1_000_003 + step).sample(range(self._size), self._batch)
        drawn = [self._order[slot] for slot in slots]
        for slot, place in zip(slots, fresh, strict=True):
            self._order[slot] = place
        return drawn

    def _keep(self, number: int, places: Sequence[int]) -> None:
        high, low = self._make(number)
        for at in places:
            self._kept[number, at] = (high[at], low[at])

    def _seek(self, step: int) -> None:
        """As if every step before had been drawn; makes only what would still be kept."""
        if step < self._next:
            self._next = 0
            self._order.clear()
            self._kept.clear()
        for past in range(self._next, step):
            self._draw(past)
        wanted: dict[int, list[int]] = {}
        for number, at in self._order:
            if (number, at) not in self._kept:
                wanted.setdefault(number, []).append(at)
        for number, places in wanted.items():
            self._keep(number, places)
