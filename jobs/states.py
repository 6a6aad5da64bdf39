"""The one state machine of a job.

    queued ──start──> processing ──succeed──> succeeded ──expire, purge──> expired
      │ <───requeue───── │  │ └──fail──> failed ──retry──> queued
      └──cancel──> canceled <──stop──┘

`cancel` is what a client asks: a queued job is canceled at once, a running one is only marked and
is canceled when its worker says `stop`, or when it would run again (`requeue`, `start`). `purge`
takes the images of an ended job, `retry` is the operator's.
`transition.lua` applies this table inside Redis, so each transition is atomic, and counts and
publishes it:

    stablesr:figures             stablesr_job_moves_total|state={state} -> jobs that came into it
    stablesr:figures:{minute}    state -> jobs that came into it in that minute
    stablesr:moves               channel: "id revision state", one message a change

A message that is not heard is lost: to listeners it is a hint, and they also look by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from .schema import FINAL, JobState

CHANNEL = "stablesr:moves"
COUNTS_KEY = "stablesr:figures"
COUNT_FIELD = "stablesr_job_moves_total|state="
MINUTE_TTL_S = 180


class Event(StrEnum):
    START = "start"
    PROGRESS = "progress"
    SUCCEED = "succeed"
    FAIL = "fail"
    REQUEUE = "requeue"
    CANCEL = "cancel"
    STOP = "stop"
    EXPIRE = "expire"
    RETRY = "retry"
    PURGE = "purge"


_QUEUED, _PROCESSING, _CANCELED = JobState.QUEUED, JobState.PROCESSING, JobState.CANCELED

TRANSITIONS: Mapping[Event, Mapping[JobState, JobState]] = {
    # From processing: a worker died and its job is handed out again before that was noticed.
    Event.START: {_QUEUED: _PROCESSING, _PROCESSING: _PROCESSING},
    Event.PROGRESS: {_PROCESSING: _PROCESSING},
    Event.SUCCEED: {_PROCESSING: JobState.SUCCEEDED},
    Event.FAIL: {_QUEUED: JobState.FAILED, _PROCESSING: JobState.FAILED},
    Event.REQUEUE: {_QUEUED: _QUEUED, _PROCESSING: _QUEUED},
    Event.CANCEL: {_QUEUED: _CANCELED, _PROCESSING: _PROCESSING},
    Event.STOP: {_QUEUED: _CANCELED, _PROCESSING: _CANCELED},
    Event.EXPIRE: {JobState.SUCCEEDED: JobState.EXPIRED},
    Event.RETRY: {JobState.FAILED: _QUEUED},
    Event.PURGE: {
        **{state: state for state in sorted(FINAL)},
        JobState.SUCCEEDED: JobState.EXPIRED,
    },
}
TRANSITIONS_WHEN_MARKED = {
    **TRANSITIONS,
    Event.START: {_QUEUED: _CANCELED, _PROCESSING: _CANCELED},
    Event.REQUEUE: {_QUEUED: _CANCELED, _PROCESSING: _CANCELED},
}


def parse_move(message: bytes) -> tuple[str, JobState]:
    """The job and its state in a message of the channel; ValueError for what no script sends."""
    job_id, _, state = message.decode().split(" ")
    return job_id, JobState(state)


def minute_key(now: float) -> str:
    """The counts of the minute that Redis' time, in seconds, lies in."""
    return f"{COUNTS_KEY}:{int(now // 60)}"
