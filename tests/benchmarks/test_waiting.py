"""What benchmarks.latency and benchmarks.fairness make of times."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from benchmarks import fairness, latency
from benchmarks.fairness import Ended
from benchmarks.latency import Begun, until_denoising
from stablesr_client import Event, Job, Progress


def event(state: str, stage: str | None) -> Event:
    progress = None if stage is None else Progress(stage=stage)
    return Event(name="state", job=Job(id="a", state=state, preset="tiny", progress=progress))


def test_the_first_step_is_the_first_event_behind_encoding() -> None:
    said = [
        event("queued", None),
        event("processing", "load"),
        event("processing", "encode"),
        event("processing", "denoise"),
        event("succeeded", None),
    ]
    heard: list[float] = []

    def stream() -> Iterator[Event]:
        for one in said:
            heard.append(time.perf_counter())
            yield one

    began = time.perf_counter()
    seconds, last = until_denoising(stream(), began)
    assert heard[3] - began <= seconds <= heard[4] - began
    assert last == said[-1].job


@pytest.mark.parametrize(("overheads", "good"), [((20, 30, 500), True), ((20, 120, 130), False)])
def test_the_median_overhead_decides(overheads: tuple[float, ...], good: bool) -> None:
    jobs = tuple(Begun(600 + overhead, 600) for overhead in overheads)
    m = latency.Measured("a machine", "tiny", jobs)
    assert m.good is good
    assert f"overhead{'':12}{sorted(overheads)[1]:9.1f}" in latency.table(m)


def test_who_ends_after_the_large_picture_was_held_up() -> None:
    large = Ended("large", 0.1, 60.0, 60.0)
    small = Ended("small 1", 0.2, 5.0, 5.0), Ended("small 2", 0.2, 61.0, 61.0)
    alone = Ended("small, alone", 0.0, 2.0, 2.0)
    m = fairness.Measured("a machine", "tiny", 4, 4096, 512, (2, 4), alone, large, small)
    assert m.held == 1
    lines = fairness.table(m).splitlines()
    assert [line for line in lines if "after the large one" in line] == [lines[6]]
    assert "held to the large one's end: 1 of 2" in lines[-1]
