"""Network calls of one image alone, and what is done when memory runs out in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.autoencoding import Changes
from models.memory import is_out_of_memory
from models.sampling import StepRequest

__all__ = ["Calls"]


class Calls:
    """Predicts tiles, at most `limit` in a call; a call that runs out of memory is halved, and
    so is the limit."""

    def __init__(
        self,
        predict: Callable[[Sequence[StepRequest]], list[Tensor]],
        limit: int,
        changes: Changes,
    ) -> None:
        self._predict = predict
        self._changes = changes
        self.limit = limit

    def __call__(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        """One tensor (n, c, h, w) for each request."""
        tiles = sum(len(request) for request in requests)
        if tiles <= self.limit:
            try:
                return self._predict(requests)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or tiles == 1:
                    raise
            before, self.limit = self.limit, tiles // 2
            self._changes.note("tile_batch", before, self.limit)
        return [self._in_parts(request) for request in requests]

    def _in_parts(self, request: StepRequest) -> Tensor:
        parts: list[Tensor] = []
        start = 0
        while start < len(request):
            stop = min(start + self.limit, len(request))
            parts += self([request.part(start, stop)])
            start = stop
        return torch.cat(parts)
