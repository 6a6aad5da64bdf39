"""Seconds of a tile and step: a way of computing that takes too long, and one that breaks."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from benchmarks.step import (
    Endless,
    Measured,
    Task,
    Way,
    limits,
    measured,
    said,
    table,
)
from models.presets import get_preset

TINY = Task(Way("fp32", "fp32"), "tiny", "preset", "cpu", batch=2, repeats=1, threads=1, limit=300)


def measure(seconds: float, batch: int) -> Measured:
    return Measured("eager", batch, seconds, seconds, seconds, seconds, 2.0, 0, 10**9, 10**6, "one")


def test_a_way_is_measured_in_a_process_of_its_own() -> None:
    found = measured(TINY)
    assert isinstance(found, Measured)
    assert found.batch == 2
    assert 0 < found.fastest <= found.seconds_per_tile_step <= found.slowest
    assert found.peak_memory_bytes > 1e8


def test_a_call_that_takes_too_long_ends_its_way_and_not_the_others() -> None:
    limited = Task(Way("slow", "fp32"), "tiny", "preset", "cpu", 2, 1, 1, limit=1e-4)
    assert measured(limited) == Endless("slow", 2, 1e-4)


def test_loading_and_compiling_may_take_longer_than_a_call() -> None:
    compiled = replace(TINY, way=replace(TINY.way, compile="on"))
    assert list(islice(limits(TINY), 3)) == [None, 300, 300]
    assert list(islice(limits(compiled), 4)) == [None, None, 300, 300]


def test_a_way_that_breaks_is_an_error() -> None:
    with pytest.raises(ChildProcessError, match="broken at batch 1 did not end"):
        measured(Task(Way("broken", "fp32"), "tiny", "preset", "none", 1, 1, 1, limit=300))


def test_what_did_not_end_is_slower_than_its_limit_in_the_table() -> None:
    results: list[Measured | Endless] = [
        measure(2.0, 1),
        Endless("slow", 1, 100.0),
        Endless("slower", 4, 100.0),
    ]
    lines = table(results, get_preset("tiny")).splitlines()
    assert lines[0] == "one"
    assert "1 M parameters" in lines[1]
    assert lines[4].split() == ["slow", "1", ">", "100", "<", "0.02"]
    # Nothing of its batch ended, so there is nothing to compare it with.
    assert lines[5].split() == ["slower", "4", ">", "25"]
    assert said(results[1]) == "slow, batch 1: a call took longer than 100 s"
