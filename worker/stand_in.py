"""A worker that serves another preset than it was told to, because the weights are missing."""

from __future__ import annotations

from dataclasses import dataclass

from models.checkpoints.places import Absence, preset_folder
from models.errors import ModelError, WeightsNotFound
from models.presets import Preset, get_preset

__all__ = ["StandIn"]


@dataclass(frozen=True)
class StandIn:
    """What the worker was to serve; `unfit` tells weights that did not load from later ones."""

    wanted: Preset
    unfit: tuple[int, int] | None

    @classmethod
    def after(cls, error: ModelError, preset: str) -> StandIn:
        """For a preset whose weights could not be loaded: they are missing or cannot be used."""
        wanted = get_preset(preset)
        return cls(wanted, None if isinstance(error, WeightsNotFound) else _stamp(wanted))

    def reason(self) -> str:
        """Why the weights are not served as far as is known now: a clause that clients may read."""
        if self.unfit is not None:
            return "its weights on the worker's machine cannot be used"
        if (absence := Absence.of(self.wanted)) is not None:
            return absence.reason
        return "its weights are not on the worker's machine"

    def over(self) -> bool:
        """Whether the weights have come, or others in place of the unfit ones."""
        return _stamp(self.wanted) not in (None, self.unfit)


def _stamp(preset: Preset) -> tuple[int, int] | None:
    """Tells one set of weights from the next in the same place; None when there is none.

    `config.json` is written last or comes with its folder, so the weights are whole once it is
    there.
    """
    try:
        status = (preset_folder(preset) / "config.json").stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
