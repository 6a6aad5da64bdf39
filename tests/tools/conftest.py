"""The evaluation's networks and pictures, for the figures drawn of them."""

from tests.evaluation.conftest import originals, sr

__all__ = ["originals", "sr"]
