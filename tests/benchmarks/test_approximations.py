"""The table of approximations: what it says of arithmetic."""

from __future__ import annotations

from benchmarks.approximations import share_of_arithmetic


def test_a_step_that_reuses_deep_features_does_part_of_the_arithmetic() -> None:
    assert 0.1 < share_of_arithmetic() < 0.6
