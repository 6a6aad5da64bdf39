"""Errors of the evaluation.

EvaluationError            (a ModelError)
├── BadPictures            pictures missing, unmatched, of a wrong kind or size
├── BaselineUnavailable    a method to compare with cannot be had or used
└── BadStudy               a key or a file of answers that cannot be used
"""

from __future__ import annotations

from models.errors import ModelError

__all__ = ["BadPictures", "BadStudy", "BaselineUnavailable", "EvaluationError"]


class EvaluationError(ModelError):
    """Base of every error raised by `evaluation` on purpose."""


class BadPictures(EvaluationError):
    """Pictures are missing, do not match, or have a kind or size that cannot be compared."""


class BaselineUnavailable(EvaluationError):
    """A method to compare with cannot be had here, or cannot do what is asked."""


class BadStudy(EvaluationError):
    """A study's key or its answers cannot be read, or do not belong together."""
