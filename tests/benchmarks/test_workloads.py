"""What times and pixels of whole jobs say."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.images import Difference, mosaic, pixels_of_file, synthetic_png
from benchmarks.workloads import faults_of, time_of_first_step
from stablesr_client import Event, Job, Progress


def event(state: str, stage: str | None) -> Event:
    progress = None if stage is None else Progress(stage=stage)
    return Event(name="state", job=Job(id="a", state=state, preset="tiny", progress=progress))


def test_the_first_step_is_the_first_event_behind_encoding() -> None:
    events = [
        event("queued", None),
        event("processing", "load"),
        event("processing", "encode"),
        event("processing", "denoise"),
        event("succeeded", None),
    ]
    times: list[float] = []

    def stream() -> Iterator[Event]:
        for one in events:
            times.append(time.perf_counter())
            yield one

    start = time.perf_counter()
    seconds, last = time_of_first_step(stream(), start)
    assert times[3] - start <= seconds <= times[4] - start
    assert last == events[-1].job


@pytest.mark.parametrize(
    ("largest", "mean", "exact", "equal"),
    [(1, 0.4, True, True), (2, 0.0, True, False), (9, 0.4, False, True), (9, 1.1, False, False)],
)
def test_what_counts_as_equal_depends_on_the_roundings(
    largest: int, mean: float, exact: bool, equal: bool
) -> None:
    assert (not faults_of(Difference(largest, mean), exact=exact)) is equal


def test_a_difference_counts_levels_over_all_pairs() -> None:
    black = np.zeros((2, 2, 3), np.uint8)
    marked = black.copy()
    marked[0, 0] = (0, 5, 255)
    assert Difference.of([(black, black), (black, marked)]) == Difference(255, 260 / 24)
    # Unsigned numbers would wrap.
    assert Difference.of([(marked, black)]).largest == 255
    with pytest.raises(ValueError, match="cannot be compared"):
        Difference.of([(black, np.zeros((2, 3, 3), np.uint8))])


def test_an_image_follows_from_its_number() -> None:
    one, other = (pixels_of_file(synthetic_png(16, number)) for number in (1, 2))
    assert one.shape == (16, 16, 3)
    assert synthetic_png(16, 1) == synthetic_png(16, 1)
    assert Difference.of([(one, other)]).mean > 5
    wide, second = mosaic(1024), mosaic(512, first=1)
    assert np.array_equal(wide[:512, 512:], second)
