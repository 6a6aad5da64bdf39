"""Processes of their own."""

from __future__ import annotations

import os
from concurrent.futures.process import BrokenProcessPool

import pytest

from benchmarks.model import alone


def test_a_task_has_a_process_of_its_own() -> None:
    assert alone(process, 3) not in (os.getpid(), 3)


def test_a_process_that_is_killed_is_an_error() -> None:
    with pytest.raises(BrokenProcessPool):
        alone(os._exit, 9)


def process(number: int) -> int:
    return os.getpid()
