"""Processes of their own, and what takes too long."""

from __future__ import annotations

import os
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from benchmarks.machine import alone, resident_peak, time_limit


def test_a_task_has_a_process_of_its_own() -> None:
    assert alone(process, 3) not in (os.getpid(), 3)


def test_a_process_that_is_killed_is_an_error() -> None:
    with pytest.raises(BrokenProcessPool):
        alone(os._exit, 9)


def process(number: int) -> int:
    return os.getpid()


def test_a_block_ends_at_its_limit() -> None:
    with pytest.raises(TimeoutError, match=r"more than 0\.01 s"), time_limit(0.01):
        time.sleep(30)
    with time_limit(30):
        pass


def test_the_most_that_a_process_held_stays_known() -> None:
    block = bytearray(64 * 2**20)
    before = resident_peak()
    del block
    assert before > 64 * 2**20
    # The kernel counts pages in batches, so that two readings differ a little.
    assert resident_peak() > before - 2**20
