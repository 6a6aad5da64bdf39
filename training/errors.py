"""Errors of training.

ModelError
└── TrainingError       a run that cannot start or go on
    ├── InvalidRun      the configuration has an unknown key or a value that cannot be
    ├── ModelFileUnreadable  a network to start from or to learn from is missing or damaged
    ├── NoPhotographs   the folder of photographs is not there or holds none that is large enough
    └── RunExists       the folder already holds a run, and it was not asked to go on with it
"""

from __future__ import annotations

from models.errors import ModelError

__all__ = ["InvalidRun", "ModelFileUnreadable", "NoPhotographs", "RunExists", "TrainingError"]


class TrainingError(ModelError):
    """A run that cannot start or go on; the message says why."""


class InvalidRun(TrainingError):
    """A configuration that cannot be followed; the message names file, key and value."""


class ModelFileUnreadable(TrainingError):
    """A network that lies in a package cannot be read; the message names file and cause."""


class NoPhotographs(TrainingError):
    """There is nothing to learn from; the message names the folder."""


class RunExists(TrainingError):
    """A checkpoint lies where a new run would write."""
