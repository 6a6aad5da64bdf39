"""What requests ask of Redis on the event loop, each in one call: a job, and who has room."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from models.presets import PRESETS

from .connection import Command, LoopClient
from .errors import RecordUnreadable
from .job_store import moment, record_key, unknown, waiting_key
from .queue import JobQueue
from .rq_adapter import queue_key
from .schema import ANYONE, Job, JobState, job_of
from .workers import NAMES_KEY, WorkerInfo, parse_worker, worker_key

# The record as one JSON text, which is parsed faster than its fields one by one; Redis' time; and
# the job's index in its queue. KEYS: the record and all queues.
READ = """
local flat = redis.call('HGETALL', KEYS[1])
if #flat == 0 then return false end
local fields = {}
for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
local index = false
if fields['state'] == 'queued' then
    for i = 2, #KEYS do
        index = index or redis.call('LPOS', KEYS[i], ARGV[1])
    end
end
return cjson.encode({fields, redis.call('TIME'), index})
"""
# How many jobs of a client and of each preset wait, and the live workers.
CAPACITY = """
local lengths, workers = {}, {}
for i = 3, #KEYS do lengths[i - 2] = redis.call('LLEN', KEYS[i]) end
for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local info = redis.call('GET', ARGV[1] .. name)
    if info then workers[#workers + 1] = info else redis.call('ZREM', KEYS[2], name) end
end
return {redis.call('ZCARD', KEYS[1]), lengths, workers}
"""
QUEUE_KEYS = tuple(map(queue_key, PRESETS))


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many jobs of a client and of each preset wait, and the live workers."""

    waiting: int
    lengths: Mapping[str, int]
    workers: Sequence[WorkerInfo]

    @staticmethod
    def command(quota_key: str) -> Command:
        """What asks Redis; `quota_key` is that of the jobs' `Origin`."""
        keys = (waiting_key(quota_key), NAMES_KEY, *QUEUE_KEYS)
        return ("EVAL", CAPACITY, len(keys), *keys, worker_key(""))

    @classmethod
    def of(cls, answer: Any) -> Self:
        waiting, lengths, raws = answer
        workers = [info for raw in raws if (info := parse_worker(raw)) is not None]
        return cls(waiting, dict(zip(PRESETS, lengths, strict=True)), workers)


class JobReader:
    """What `JobQueue.get` does, without a thread."""

    def __init__(self, client: LoopClient, queue: JobQueue) -> None:
        self._client = client
        self._queue = queue

    async def get(self, job_id: str, owner: str = ANYONE) -> Job:
        """The job now, with its place in the queue while it waits.

        Raises JobNotFound, also for a job of another owner; QueueUnavailable, RecordUnreadable.
        """
        [answer] = await self._client.call(self.command(job_id))
        return await self.job_of(answer, job_id, owner)

    def command(self, job_id: str) -> Command:
        """What `get` asks Redis, for a call that asks for more."""
        return ("EVAL", READ, 1 + len(QUEUE_KEYS), record_key(job_id), *QUEUE_KEYS, job_id)

    async def job_of(self, answer: bytes | None, job_id: str, owner: str) -> Job:
        """What `get` makes of the answer."""
        if answer is None:
            raise unknown(job_id)
        try:
            fields, clock, index = json.loads(answer)
        except ValueError as error:
            raise RecordUnreadable(f"The record of job {job_id} is no text: {error}.") from error
        job = job_of(job_id, fields)
        if job.owner != owner:
            raise unknown(job_id)
        if job.state is JobState.QUEUED:
            return job.model_copy(update={"queue_position": 1 + (index or 0)})
        now = moment(map(int, clock))
        if job.state is JobState.SUCCEEDED and job.expires_at and job.expires_at <= now:
            # It expires in this moment, which moves the record.
            return await asyncio.to_thread(self._queue.get, job_id, owner)
        return job
