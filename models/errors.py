"""Errors of the model side.

ModelError
├── UnknownPreset      a preset name that does not exist
├── WeightsNotFound    the preset's weights are not on this machine
├── CheckpointError    a file or folder of weights that cannot be used; the message names it
│   ├── CheckpointUnreadable  no checkpoint at all, cut off, damaged or of an unknown kind
│   └── CheckpointMismatch    tensors missing, left over or of the wrong shape
├── LicenceNotAccepted weights are not downloaded before their licence is accepted
├── DownloadFailed     weights could not be downloaded, or what came is not what was asked for
├── DiskFull           no room for weights
├── WeightsExist       a folder that would be written over
├── MissingTextTower   a prompt for weights that cannot read one
├── ScratchFull        no room on the disk where feature maps are kept
├── NotFinite          the networks gave infinities, or no numbers
├── NotEnoughMemory    no plan for an image fits into what memory there is
└── InvalidOption      an option outside its range (also a ValueError)
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CheckpointMismatch",
    "CheckpointUnreadable",
    "DiskFull",
    "DownloadFailed",
    "InvalidOption",
    "LicenceNotAccepted",
    "MissingTextTower",
    "ModelError",
    "NotEnoughMemory",
    "NotFinite",
    "ScratchFull",
    "UnknownPreset",
    "WeightsExist",
    "WeightsNotFound",
]


class ModelError(Exception):
    """Base of every error raised by `models` on purpose."""


class UnknownPreset(ModelError):
    """The preset's name is not in the catalogue."""


class WeightsNotFound(ModelError):
    """The weights of a known preset are not on this machine."""


class CheckpointError(ModelError):
    """A file or folder of weights cannot be used."""


class CheckpointUnreadable(CheckpointError):
    """It is no checkpoint, or cut off, damaged, or of a kind that is not read."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint does not hold exactly the tensors the networks ask for."""


class LicenceNotAccepted(ModelError):
    """The licence of weights has to be accepted before they are downloaded."""


class DownloadFailed(ModelError):
    """Weights could not be downloaded, or what came is not what was asked for."""


class DiskFull(ModelError):
    """The disk has no room for weights."""


class WeightsExist(ModelError):
    """A folder of weights would be written over."""


class MissingTextTower(ModelError):
    """There is a prompt, and the weights hold no text tower that could read it."""


class ScratchFull(ModelError):
    """The disk that feature maps are kept on has no room left."""


class NotFinite(ModelError):
    """The networks gave values that no picture can be made of."""


class NotEnoughMemory(ModelError):
    """Even the smallest plan for an image needs more memory than there is."""


class InvalidOption(ModelError, ValueError):
    """An option has a value outside its range; the message names both."""
