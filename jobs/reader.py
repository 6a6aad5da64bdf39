"""A job as requests ask for it on the event loop, in one call to Redis."""

from __future__ import annotations

import asyncio
import json

from .connection import Command, LoopClient
from .errors import RecordUnreadable
from .job_store import moment, record_key, unknown
from .queue import JobQueue
from .schema import ANYONE, Job, JobState, job_of
from .workers import QUEUE_KEYS

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
        if job.is_due(moment([int(number) for number in clock])):
            # It expires in this moment, which moves the record.
            return await asyncio.to_thread(self._queue.get, job_id, owner)
        return job
