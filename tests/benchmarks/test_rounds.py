"""What the benchmarks of whole jobs make of their times and pictures."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pictures import Difference, decoded, picture
from benchmarks.rounds import Done, Round, percentile


def test_a_percentile_is_a_value_that_the_share_does_not_exceed() -> None:
    values = [float(n) for n in range(20, 0, -1)]
    assert percentile(values, 0.5) == 10
    assert percentile(values, 0.95) == 19
    assert percentile(values, 1.0) == 20
    assert percentile([3.0], 0.95) == 3


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_round_tells_speed_and_company() -> None:
    jobs = (Done(1.0, {"encode": 0.5}), Done(3.0, {"encode": 1.5, "denoise": 1.0}))
    done = Round(seconds=4.0, jobs=jobs, calls=4, tiles=12, fill=0.375)
    assert done.images_per_second == 0.5
    assert done.tiles_per_call == 3
    assert done.latency(0.5) == 1
    assert done.stage("encode") == 1
    assert done.stage("denoise") == 0.5
    assert done.stage("save") == 0


def test_a_difference_counts_levels_over_all_pairs() -> None:
    black = np.zeros((2, 2, 3), np.uint8)
    marked = black.copy()
    marked[0, 0] = (0, 5, 255)
    found = Difference.of([(black, black), (black, marked)])
    assert found == Difference(largest=255, mean=260 / 24, differing=2 / 24)
    # Unsigned numbers would wrap.
    assert Difference.of([(marked, black)]).largest == 255


def test_pictures_of_two_sizes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        Difference.of([(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8))])


def test_a_picture_follows_from_its_seed() -> None:
    assert decoded(picture(16, 1)).shape == (16, 16, 3)
    assert picture(16, 1) == picture(16, 1)
    assert Difference.of([(decoded(picture(16, 1)), decoded(picture(16, 2)))]).mean > 5
