"""Processes of their own, and how they end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool

import pytest

from benchmarks.processes import alone, run_part


def test_a_task_has_a_process_of_its_own() -> None:
    assert alone(process, 3) not in (os.getpid(), 3)


def test_a_process_that_is_killed_is_an_error() -> None:
    with pytest.raises(BrokenProcessPool):
        alone(os._exit, 9)


def process(number: int) -> int:
    return os.getpid()


def late(number: int) -> Iterator[int]:
    yield number
    time.sleep(3600)


def broken(number: int) -> Iterator[int]:
    yield number
    raise ValueError("no such kernel\nand more")


def dead(number: int) -> Iterator[int]:
    yield number
    os._exit(9)


def well(number: int) -> Iterator[int]:
    yield number


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (broken, "ValueError: no such kernel"),
        (dead, "its process ended with 9"),
        (well, ""),
    ],
)
def test_what_a_part_yields_before_it_ends_stays(
    part: Callable[[int], Iterator[int]], reason: str
) -> None:
    assert run_part(part, 7, 120) == ([7], reason)


def test_a_part_is_killed_at_its_limit() -> None:
    start = time.monotonic()
    _, reason = run_part(late, 7, 2)
    assert reason == "not done after 2 s"
    assert time.monotonic() - start < 60
