"""The table of states as a function; `transition.lua` reads it inside Redis."""

from __future__ import annotations

from jobs.schema import JobState
from jobs.states import TRANSITIONS, TRANSITIONS_WHEN_MARKED, Event


def next_state(state: JobState, event: Event, *, cancel_requested: bool = False) -> JobState | None:
    """Where the event takes a job, or None where it cannot happen; marked: cancel was asked."""
    return (TRANSITIONS_WHEN_MARKED if cancel_requested else TRANSITIONS)[event].get(state)
