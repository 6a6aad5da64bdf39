"""Errors of the model side.

ModelError
├── UnknownPreset      a preset name that does not exist
├── WeightsNotFound    the preset's weights are not on this machine
├── CheckpointMismatch tensors missing, left over or of the wrong shape
└── InvalidOption      an option outside its range (also a ValueError)
"""

from __future__ import annotations

__all__ = [
    "CheckpointMismatch",
    "InvalidOption",
    "ModelError",
    "UnknownPreset",
    "WeightsNotFound",
]


class ModelError(Exception):
    """Base of every error raised by `models` on purpose."""


class UnknownPreset(ModelError):
    """The preset's name is not in the catalogue."""


class WeightsNotFound(ModelError):
    """The weights of a known preset are not on this machine."""


class CheckpointMismatch(ModelError):
    """A checkpoint does not hold exactly the tensors the networks ask for."""


class InvalidOption(ModelError, ValueError):
    """An option has a value outside its range; the message names both."""
