"""Errors of `models`: each a ModelError whose message is one sentence for a person."""

from __future__ import annotations


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
    """The networks gave values that no image can be made of."""


class NotEnoughMemory(ModelError):
    """Even the smallest plan for an image needs more memory than there is."""


class InvalidOption(ModelError, ValueError):
    """An option has a value outside its range; the message names both."""
