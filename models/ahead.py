"""The time-aware encoder ahead of the UNet, where network calls have few tiles.

The encoder reads the LR tile and the timestep, not what is noisy: what it says of a tile at the
steps to come can be computed now. One tile does not fill a GPU, eight do: the encoder then computes
several steps of a tile in one call, and the UNet's calls take the features from there. Exact but
for rounding, as calls of other sizes are.

Which tiles belong to which step and job is the sampler's to know: a `StepRequest` carries what is
known of its tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.autoencoding import Changes
from models.compiled import FEW_TILES, Apart, Denoises
from models.memory import is_out_of_memory

__all__ = ["Ahead", "Foreseeing", "Foreseen"]

_Features = tuple[Tensor, ...]
"""Of one tile at one step, finest first: (width, h / 2^i, w / 2^i)."""


class Foreseen:
    """What the encoder says of one job's tiles at this step and later ones, where networks compute.
    It goes with the job's sampler. For jobs of few tiles: of many, each call has others.

    Args:
        timesteps: of the job's steps.
    """

    def __init__(self, timesteps: Sequence[int]) -> None:
        self.timesteps = tuple(timesteps)
        self._known: dict[tuple[int, int], _Features] = {}

    def keep(self, tile: int, step: int, features: _Features) -> None:
        self._known[tile, step] = features

    def of(self, tile: int, step: int) -> _Features | None:
        """None if it is not known."""
        return self._known.get((tile, step))

    def forget(self, before: int) -> None:
        """What no step from that one on reads."""
        for tile, step in list(self._known):
            if step < before:
                del self._known[tile, step]


@dataclass(frozen=True)
class Ahead:
    """Tiles of one step, and what is known of them."""

    foreseen: Foreseen
    step: int
    """0-based"""
    tiles: tuple[int, ...]
    """Number of each among the job's"""

    def part(self, start: int, stop: int) -> Ahead:
        """Of these tiles, counted among the step's."""
        return replace(self, tiles=self.tiles[start:stop])


class Foreseeing:
    """Makes network calls of few tiles with the encoder ahead.

    Args:
        denoiser: says who makes them, at every call.
        room: tiles that a network call has memory for.
        changes: noted where memory ran out.
    """

    def __init__(
        self, denoiser: Callable[[], Denoises], room: Callable[[], int], changes: Changes
    ) -> None:
        self._denoiser, self._room, self._changes = denoiser, room, changes
        self._most: int | None = None

    def __call__(
        self, aheads: Sequence[Ahead | None], noisy: Tensor, lr: Tensor, timesteps: Sequence[int]
    ) -> Tensor | None:
        """float32 predictions of tiles with the empty prompt; None where the encoder is better
        computed with the UNet.

        Args:
            aheads: of requests, whose tiles follow each other.
            noisy: (n, c, h, w)
            lr: (n, c, h, w)
            timesteps: of each tile.
        """
        given = [ahead for ahead in aheads if ahead is not None]
        for ahead in given:
            ahead.foreseen.forget(ahead.step)
        apart = self._denoiser().apart
        if apart is None or len(noisy) > FEW_TILES or len(given) < len(aheads):
            return None
        rows = self._rows(apart)
        if rows <= FEW_TILES:
            return None
        try:
            features = self._features(apart, given, lr, rows)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            features = None
        # Only here: the error held what was computed so far.
        if features is None:
            self._most = rows // 2
            self._changes.note("ahead", rows, self._most)
            return None
        return apart.denoise(noisy, timesteps, features)

    def _rows(self, apart: Apart) -> int:
        """Of an encoder's call: a row of it takes less memory than a tile of a network call."""
        rows = min(apart.rows_ahead, self._room())
        return rows if self._most is None else min(rows, self._most)

    def _features(
        self, apart: Apart, aheads: Sequence[Ahead], lr: Tensor, rows: int
    ) -> list[Tensor]:
        """Of these tiles, a tensor a level; what is not known is computed, with steps to come."""
        tiles = [(ahead, tile) for ahead in aheads for tile in ahead.tiles]
        missing: dict[tuple[Foreseen, int], tuple[Ahead, Tensor]] = {}
        for (ahead, tile), row in zip(tiles, lr, strict=True):
            if ahead.foreseen.of(tile, ahead.step) is None:
                missing[ahead.foreseen, tile] = ahead, row
        if missing:
            _foresee(apart, missing, rows)
        found = [ahead.foreseen.of(tile, ahead.step) for ahead, tile in tiles]
        return [
            torch.stack(level) for level in zip(*(f for f in found if f is not None), strict=True)
        ]


def _foresee(
    apart: Apart, missing: dict[tuple[Foreseen, int], tuple[Ahead, Tensor]], rows: int
) -> None:
    """One call: each of these tiles at its step and the following ones."""
    steps = rows // len(missing)
    places: list[tuple[Foreseen, int, int]] = []
    inputs: list[Tensor] = []
    for (foreseen, tile), (ahead, row) in missing.items():
        for step in range(ahead.step, min(ahead.step + steps, len(foreseen.timesteps))):
            places.append((foreseen, tile, step))
            inputs.append(row)
    timesteps = [foreseen.timesteps[step] for foreseen, _, step in places]
    levels = apart.encode(torch.stack(inputs), timesteps, rows)
    for (foreseen, tile, step), features in zip(places, zip(*levels, strict=True), strict=True):
        foreseen.keep(tile, step, features)
