"""What takes too long, and the most that a process held."""

from __future__ import annotations

import time

import pytest

from benchmarks.machine import resident_peak, time_limit


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
