"""How many steps there will be, where minutes bound them."""

from __future__ import annotations

from training.checkpoint import Progress
from training.config import LoopSettings


def progress(*, step: int, seconds: float, minutes: float | None = 1.0) -> Progress:
    result = Progress(LoopSettings(steps=1000, batch=1, minutes=minutes))
    result.step, result.seconds = step, seconds
    return result


def test_the_number_of_steps_is_what_fits_into_the_minutes_at_most_what_was_asked() -> None:
    slow, fast = progress(step=10, seconds=30.0), progress(step=100, seconds=1.0)
    slow.replan()
    fast.replan()
    assert (slow.total, fast.total) == (20, 1000)


def test_a_stage_that_is_over_stays_over_though_its_last_steps_were_quick() -> None:
    stage = progress(step=20, seconds=55.0)
    stage.total = 20
    stage.replan()
    assert stage.over
    assert stage.total == 20


def test_without_minutes_nothing_is_planned_anew() -> None:
    free = progress(step=10, seconds=9000.0, minutes=None)
    free.replan()
    assert free.total == 1000
