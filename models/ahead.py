"""The time-aware encoder ahead of the UNet, for a job of a single tile.

The encoder reads the LR tile and the timestep, not what is noisy: what it says of the tile at the
steps to come can be computed now. One tile does not fill a GPU, eight do: where a network call has
a single tile, the encoder computes several of its steps in one call, and the UNet's calls take the
features from there. Exact but for rounding, as calls of other sizes are.

Whose tile it is at which step is the sampler's to know: a `StepRequest` carries what is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from models.autoencoding import Changes
from models.compiled import Apart
from models.memory import is_out_of_memory

__all__ = ["Ahead", "Foreseeing", "Foreseen"]


class Foreseen:
    """What the encoder says of a job's one tile at this step and later ones, where networks
    compute. It goes with the job's sampler.

    Args:
        timesteps: of the job's steps.
    """

    def __init__(self, timesteps: Sequence[int]) -> None:
        self.timesteps = tuple(timesteps)
        self._known: dict[int, list[Tensor]] = {}

    def keep(self, step: int, features: list[Tensor]) -> None:
        """Of one step, finest first: (1, width, h / 2^i, w / 2^i)."""
        self._known[step] = features

    def of(self, step: int) -> list[Tensor] | None:
        """None if it is not known."""
        return self._known.get(step)

    def forget(self, before: int) -> None:
        """What no step from that one on reads."""
        for step in [step for step in self._known if step < before]:
            del self._known[step]


@dataclass(frozen=True)
class Ahead:
    """A job's one tile at one of its steps."""

    foreseen: Foreseen
    step: int
    """0-based"""


class Foreseeing:
    """Makes network calls of a single tile with the encoder ahead.

    Args:
        changes: noted where memory ran out.
    """

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._most: int | None = None

    def __call__(
        self, apart: Apart | None, aheads: Sequence[Ahead | None], noisy: Tensor, lr: Tensor
    ) -> Tensor | None:
        """The float32 prediction of a tile with the empty prompt; None where the encoder is better
        computed with the UNet.

        Args:
            apart: who makes these calls.
            aheads: of a call's requests.
            noisy: (n, c, h, w), all their tiles
            lr: (n, c, h, w)
        """
        for ahead in aheads:
            if ahead is not None:
                ahead.foreseen.forget(ahead.step)
        if apart is None or len(noisy) != 1 or aheads[0] is None:
            return None
        rows = apart.rows_ahead if self._most is None else self._most
        if rows == 1:
            return None
        foreseen, step = aheads[0].foreseen, aheads[0].step
        try:
            features = foreseen.of(step) or _foresee(apart, foreseen, step, lr, rows)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            features = None
        # Only here: the error held what was computed so far.
        if features is None:
            self._most = rows // 2
            self._changes.note("ahead", rows, self._most)
            return None
        return apart.denoise(noisy, foreseen.timesteps[step], features)


def _foresee(apart: Apart, foreseen: Foreseen, step: int, lr: Tensor, rows: int) -> list[Tensor]:
    """One call: the tile at its step and the following ones. Returns its step's features."""
    timesteps = foreseen.timesteps[step : step + rows]
    levels = apart.encode(lr.expand(len(timesteps), -1, -1, -1), timesteps, rows)
    for number in range(len(timesteps)):
        foreseen.keep(step + number, [level[number : number + 1] for level in levels])
    return [level[:1] for level in levels]
