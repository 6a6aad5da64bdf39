"""The table of states, without Redis."""

from __future__ import annotations

import pytest

from jobs.schema import FINAL, JobState
from jobs.states import TRANSITIONS, TRANSITIONS_WHEN_MARKED, Event

from .conftest import next_state

EVERYTHING = [(state, event, marked) for state in JobState for event in Event for marked in (0, 1)]


@pytest.mark.parametrize("event", Event)
def test_every_event_is_in_both_tables(event: Event) -> None:
    assert event in TRANSITIONS
    assert event in TRANSITIONS_WHEN_MARKED


def test_an_ended_job_only_expires_or_runs_again() -> None:
    moves = {
        (state, event, next_state(state, event, cancel_requested=bool(marked)))
        for state, event, marked in EVERYTHING
        if state in FINAL
    }
    assert {move for move in moves if move[2] not in (None, move[0])} == {
        (JobState.SUCCEEDED, Event.EXPIRE, JobState.EXPIRED),
        (JobState.SUCCEEDED, Event.PURGE, JobState.EXPIRED),
        (JobState.FAILED, Event.RETRY, JobState.QUEUED),
    }


def test_every_state_is_reached_from_queued() -> None:
    reached, fresh = {JobState.QUEUED}, {JobState.QUEUED}
    while fresh:
        fresh = {
            to
            for state, event, marked in EVERYTHING
            if state in fresh and (to := next_state(state, event, cancel_requested=bool(marked)))
        } - reached
        reached |= fresh
    assert reached == set(JobState)


def test_a_job_whose_cancel_was_asked_never_runs_or_waits_again() -> None:
    for state in (JobState.QUEUED, JobState.PROCESSING):
        for event in (Event.START, Event.REQUEUE):
            assert next_state(state, event, cancel_requested=True) is JobState.CANCELED


def test_a_result_that_came_before_the_stop_counts() -> None:
    assert (
        next_state(JobState.PROCESSING, Event.SUCCEED, cancel_requested=True) is JobState.SUCCEEDED
    )
