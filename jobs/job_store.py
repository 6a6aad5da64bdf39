"""The record of a job: one Redis hash, and the only truth about its state.

    stablesr:job:{id}          state, parameters, input, times, progress, result, error, ...
    stablesr:agenda            sorted set: job id -> when the job is looked at again
    stablesr:jobs:{owner}      sorted set: id of a job of this owner -> when it was created
    stablesr:jobs:{owner}:{state}   the same of those in this state
    stablesr:waiting:{owner}   the same of those that wait; by address where there is no owner
    stablesr:webhooks          sorted set: id of an ended job whose webhook is to be called -> when

Every change is one Lua script that looks the event up in the table of `jobs.states`, so two
processes can never move a job at once. Times are the Redis server's, as hosts' clocks disagree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redis import Redis
from redis.client import Pipeline

from models.presets import PRESETS

from .connection import Command, as_texts, queue_errors, seconds_of
from .errors import JobEnded, JobNotFound, Problem, RecordUnreadable, WrongState
from .schema import Job, JobState, Origin, Progress, ResultInfo, Timings, job_of
from .states import (
    CHANNEL,
    COUNT_FIELD,
    COUNTS_KEY,
    MINUTE_TTL_S,
    TRANSITIONS,
    TRANSITIONS_WHEN_MARKED,
    Event,
)

AGENDA_KEY = "stablesr:agenda"
WEBHOOKS_KEY = "stablesr:webhooks"
# An active job that has not moved for so long is compared with RQ's view of it.
LOOK_AGAIN_S = 60
# How long a job may wait for a worker.
QUEUE_TTL_S = 7 * 86_400
# How long an expired job is still known as expired rather than not at all.
TOMBSTONE_S = 86_400


def record_key(job_id: str) -> str:
    return f"stablesr:job:{job_id}"


def owner_key(owner: str, state: JobState | None = None) -> str:
    return f"stablesr:jobs:{owner}" + (f":{state}" if state else "")


def waiting_key(quota_key: str) -> str:
    return f"stablesr:waiting:{quota_key}"


def list_key(preset: str) -> str:
    """RQ's list of the preset."""
    return f"rq:queue:stablesr:{preset}"


def queue_key(preset: str) -> str:
    """Of `jobs.fair_queue`."""
    return f"stablesr:queue:{preset}"


# Where the waiting ids are: those next to start, then all others.
QUEUE_KEYS = (*map(list_key, PRESETS), *map(queue_key, PRESETS))

# The record as one JSON text, which is parsed faster than its fields one by one; Redis' time; and
# the job's index in its queue. KEYS: the record and QUEUE_KEYS.
READ = """
local flat = redis.call('HGETALL', KEYS[1])
if #flat == 0 then return false end
local fields = {}
for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
local index = false
if fields['state'] == 'queued' then
    local n = (#KEYS - 1) / 2
    for i = 2, n + 1 do
        local rank = redis.call('ZRANK', KEYS[i + n], ARGV[1])
        index = index or redis.call('LPOS', KEYS[i], ARGV[1])
            or rank and redis.call('LLEN', KEYS[i]) + rank
    end
end
return cjson.encode({fields, redis.call('TIME'), index})
"""


def read_command(job_id: str) -> Command:
    """What asks Redis for a job; `job_read` is what its answer says."""
    return ("EVAL", READ, 1 + len(QUEUE_KEYS), record_key(job_id), *QUEUE_KEYS, job_id)


def job_read(job_id: str, answer: bytes | None) -> tuple[Job, bool]:
    """The job, with its place in the queue while it waits, and whether it is due to expire.

    Raises JobNotFound, RecordUnreadable.
    """
    if answer is None:
        raise unknown(job_id)
    try:
        fields, clock, index = json.loads(answer)
    except ValueError as error:
        raise RecordUnreadable(f"The record of job {job_id} is no text: {error}.") from error
    job = job_of(job_id, fields)
    if job.state is JobState.QUEUED:
        job = job.model_copy(update={"queue_position": 1 + (index or 0)})
    return job, job.is_due(moment([int(number) for number in clock]))


def moment(time: Any) -> datetime:
    """What Redis' TIME answers, as a time in UTC."""
    return datetime.fromtimestamp(seconds_of(time), UTC)


_CREATION: dict[Any, Any] = {"create": {"": JobState.QUEUED}}
_CONSTANTS = {
    "transitions": {**TRANSITIONS, **_CREATION},
    "when_marked": {**TRANSITIONS_WHEN_MARKED, **_CREATION},
    "final": {state: state.is_final for state in JobState},
    "channel": CHANNEL,
    "count_field": COUNT_FIELD,
    "minute_ttl_s": MINUTE_TTL_S,
    "look_again_s": LOOK_AGAIN_S,
    "tombstone_s": TOMBSTONE_S,
    "record": record_key(""),
    "jobs": owner_key(""),
    "waiting": waiting_key(""),
}
_SCRIPT = f"local constants = cjson.decode('{json.dumps(_CONSTANTS)}')\n" + Path(
    __file__
).with_name("transition.lua").read_text("utf-8")
_KEYS = (AGENDA_KEY, COUNTS_KEY, WEBHOOKS_KEY)
# What a job has of having run, and by when it was to have ended.
RUN_FIELDS = (
    "started_at",
    "ended_at",
    "purged_after_s",
    "worker",
    "progress",
    "timings",
    "error",
    "cancel_requested",
    "deadline",
)


class JobStore:
    """Reads records and makes their transitions. How long a job may wait and is kept, they say.

    Raises JobNotFound, WrongState, JobEnded and QueueUnavailable.
    """

    def __init__(self, connection: Redis) -> None:
        self._connection = connection
        self._transition = connection.register_script(_SCRIPT)

    # The service's side, and the operator's

    def create(self, pipe: Pipeline, job_id: str, record: Mapping[str, str]) -> None:
        """Adds a new queued job, a `new_record`, to a transaction that also hands it to RQ."""
        keys = (record_key(job_id), *_KEYS)
        pipe.eval(_SCRIPT, len(keys), *keys, job_id, "create", json.dumps(record), "[]", "")

    def retry(self, pipe: Pipeline, job_id: str) -> None:
        """The same for a job that failed and waits as if new. It watches the record of such a job;
        `jobs.operator` sees to its image."""
        keys, fields, drop = (record_key(job_id), *_KEYS), {"attempt": "0"}, json.dumps(RUN_FIELDS)
        pipe.eval(_SCRIPT, len(keys), *keys, job_id, Event.RETRY, json.dumps(fields), drop, "")

    def get(self, job_id: str) -> Job:
        """The job as it is now, expired if it is due; raises RecordUnreadable as well."""
        job, is_due = self._read(job_id)
        return self.expire(job_id) if is_due else job

    def cancel(self, job_id: str) -> Job:
        """Cancels a queued job, marks a running one to be stopped; raises JobEnded."""
        return self._apply(job_id, Event.CANCEL, {"cancel_requested": "1"})

    def purge(self, job_id: str) -> Job:
        """An ended job's images are due to be removed; a succeeded one is expired from now on."""
        return self._apply(job_id, Event.PURGE, {})

    # The worker's side. A worker that names itself is refused (WrongState) once another one has
    # the job, so that one that was taken for lost and comes back cannot spoil the other's run.

    def start(self, job_id: str, worker: str) -> Job:
        """A worker begins an attempt, which counts from 1. Raises JobEnded, also where a cancel was
        asked while no worker had the job, which is canceled here."""
        job = self._apply(job_id, Event.START, {"worker": worker}, drop=("progress",))
        if job.state.is_final:
            raise _end_error(job)
        return job

    def progress(self, job_id: str, progress: Progress, *, worker: str | None = None) -> Job:
        """Notes how far a running job is; the returned job says whether to stop it."""
        fields = {"progress": progress.model_dump_json()}
        return self._apply(job_id, Event.PROGRESS, fields, worker=worker)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether the worker should stop: a cancel was asked, or the job is not running any more.
        Cheap enough for every step."""
        with queue_errors(self._connection):
            state, mark = self._connection.hmget(record_key(job_id), "state", "cancel_requested")
        return mark == b"1" or state != JobState.PROCESSING.value.encode()

    def succeed(
        self, job_id: str, result: ResultInfo, timings: Timings, *, worker: str | None = None
    ) -> Job:
        """The result is in the store: the job is done, and its result's time starts to run."""
        fields = {"result": result.model_dump_json(), "timings": timings.model_dump_json()}
        return self._apply(job_id, Event.SUCCEED, fields, worker=worker)

    def fail(self, job_id: str, problem: Problem, *, worker: str | None = None) -> Job:
        """The job cannot succeed; the problem is what the client is shown."""
        return self._apply(job_id, Event.FAIL, {"error": problem.model_dump_json()}, worker=worker)

    def requeue(self, job_id: str, *, worker: str | None = None) -> Job:
        """The job waits again, because its worker stops or was lost; canceled if that was asked."""
        drop = ("started_at", "worker", "progress")
        return self._apply(job_id, Event.REQUEUE, {}, drop=drop, worker=worker)

    def stop(self, job_id: str, *, worker: str | None = None) -> Job:
        """The worker has stopped the job as it was asked to."""
        return self._apply(job_id, Event.STOP, {}, worker=worker)

    # Maintenance

    def forget(self, job_id: str, origin: Origin) -> None:
        """Removes the record of a job that is undone or has ended. Its images are due to be removed
        from now on, in case that its process dies before."""
        now = self.now().timestamp()
        with queue_errors(self._connection), self._connection.pipeline() as pipe:
            pipe.delete(record_key(job_id))
            indexes = (owner_key(origin.owner, state) for state in (None, *JobState))
            for key in (*indexes, waiting_key(origin.quota_key)):
                pipe.zrem(key, job_id)
            pipe.zadd(AGENDA_KEY, {job_id: now})
            pipe.execute()

    def expire(self, job_id: str) -> Job:
        """A succeeded job's result is gone, or about to be; one that has expired stays so."""
        try:
            return self._apply(job_id, Event.EXPIRE, {})
        except JobEnded:
            # Each reader of a job expires it at its time: another one was first.
            job, _ = self._read(job_id)
            if job.state is not JobState.EXPIRED:
                raise
            return job

    def now(self) -> datetime:
        """The Redis server's time."""
        with queue_errors(self._connection):
            return moment(self._connection.time())

    def _read(self, job_id: str) -> tuple[Job, bool]:
        untyped: Any = self._connection
        with queue_errors(self._connection):
            return job_read(job_id, untyped.execute_command(*read_command(job_id)))

    def _apply(
        self,
        job_id: str,
        event: Event,
        fields: Mapping[str, str],
        *,
        drop: tuple[str, ...] = (),
        worker: str | None = None,
    ) -> Job:
        arguments = [job_id, event.value, json.dumps(fields), json.dumps(drop), worker or ""]
        with queue_errors(self._connection):
            answer: Any = self._transition(keys=[record_key(job_id), *_KEYS], args=arguments)
        if answer[0] < 0:
            raise unknown(job_id)
        job = job_in(job_id, answer)
        if answer[0]:
            return job
        if job.state.is_final:
            raise _end_error(job)
        if job.state in TRANSITIONS[event]:
            reason = f"run by worker {job.worker} now, not by {worker} any more"
        else:
            possible = " or ".join(TRANSITIONS[event])
            reason = f"{job.state}; {event} can happen only to a job that is {possible}"
        raise WrongState(f"Job {job_id} is {reason}.", state=job.state.value)


def job_in(job_id: str, answer: Any) -> Job:
    """The job that the script answered with."""
    flat = iter(answer[1])
    return job_of(job_id, as_texts(dict(zip(flat, flat, strict=True))))


def unknown(job_id: str) -> JobNotFound:
    """The same words for a job that is not there and for one of another owner."""
    return JobNotFound(f"There is no job {job_id!r}; it may have expired.")


def _end_error(job: Job) -> JobEnded:
    return JobEnded(
        f"Job {job.id} has already ended: it is {job.state}, which is final.", state=job.state.value
    )
