"""The one state machine of a job: which event moves it from where to where.

    queued ──start──> processing ──succeed──> succeeded ──expire──> expired
      │ <───requeue───── │  │ └──fail──> failed
      └──cancel──> canceled <──stop──┘

`cancel` is what a client asks: a queued job is canceled there and then, a running one is only
marked and is canceled when its worker says `stop`. Once marked, a job that would run again
(`requeue`, `start`) is canceled instead. An ended job never changes, save that the result of a
succeeded one expires. `jobs.records` applies this table inside Redis, so each move is atomic.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from .schema import JobState

__all__ = ["TRANSITIONS", "TRANSITIONS_WHEN_MARKED", "Event", "next_state"]


class Event(StrEnum):
    START = "start"
    PROGRESS = "progress"
    SUCCEED = "succeed"
    FAIL = "fail"
    REQUEUE = "requeue"
    CANCEL = "cancel"
    STOP = "stop"
    EXPIRE = "expire"


Table = Mapping[Event, Mapping[JobState, JobState]]

_QUEUED, _PROCESSING, _CANCELED = JobState.QUEUED, JobState.PROCESSING, JobState.CANCELED

TRANSITIONS: Table = MappingProxyType(
    {
        # From processing: a worker died and its job is handed out again before anybody noticed.
        Event.START: {_QUEUED: _PROCESSING, _PROCESSING: _PROCESSING},
        Event.PROGRESS: {_PROCESSING: _PROCESSING},
        Event.SUCCEED: {_PROCESSING: JobState.SUCCEEDED},
        Event.FAIL: {_QUEUED: JobState.FAILED, _PROCESSING: JobState.FAILED},
        Event.REQUEUE: {_QUEUED: _QUEUED, _PROCESSING: _QUEUED},
        Event.CANCEL: {_QUEUED: _CANCELED, _PROCESSING: _PROCESSING},
        Event.STOP: {_QUEUED: _CANCELED, _PROCESSING: _CANCELED},
        Event.EXPIRE: {JobState.SUCCEEDED: JobState.EXPIRED},
    }
)

TRANSITIONS_WHEN_MARKED: Table = MappingProxyType(
    {
        **TRANSITIONS,
        Event.START: {_QUEUED: _CANCELED, _PROCESSING: _CANCELED},
        Event.REQUEUE: {_QUEUED: _CANCELED, _PROCESSING: _CANCELED},
    }
)


def next_state(state: JobState, event: Event, *, marked: bool = False) -> JobState | None:
    """Where the event takes a job, or None where it cannot happen; marked: cancel was asked."""
    return (TRANSITIONS_WHEN_MARKED if marked else TRANSITIONS)[event].get(state)
