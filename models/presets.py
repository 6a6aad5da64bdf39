"""The sets of weights there are, and how each one samples."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from models.errors import UnknownPreset

__all__ = ["PRESETS", "Preset", "get_preset"]


@dataclass(frozen=True)
class Preset:
    """What the pipeline needs to know of a set of weights beside its `config.json`."""

    name: str
    native: int
    """Resolution the weights were trained at: the shorter side of every canvas at least, px."""
    tile: int
    """Side of a UNet tile in latent cells."""
    steps: int
    """Default number of sampling steps."""
    fidelity_weight: float
    """Default w."""
    embedded: bool = False
    """Whether the weights are shipped in the package."""


_ALL = (
    Preset("tiny", native=512, tile=64, steps=4, fidelity_weight=0.5, embedded=True),
    Preset("stablesr-512", native=512, tile=64, steps=200, fidelity_weight=0.5),
    Preset("stablesr-turbo", native=512, tile=64, steps=4, fidelity_weight=0.5),
    # There is no CFW trained for 768v, so nothing is wrapped unless asked for.
    Preset("stablesr-768v", native=768, tile=96, steps=200, fidelity_weight=0.0),
    Preset("stablesr-face", native=512, tile=64, steps=200, fidelity_weight=0.5),
)

PRESETS = MappingProxyType({p.name: p for p in _ALL})


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UnknownPreset: with the names there are.
    """
    try:
        return PRESETS[name]
    except KeyError:
        known = ", ".join(PRESETS)
        raise UnknownPreset(f"The preset {name!r} is not one of {known}.") from None
