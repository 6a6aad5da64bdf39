"""Which waiting job of a preset starts next: clients take turns, low priority is last.

    stablesr:queue:{preset}   sorted set: id of a waiting job -> its turn
    stablesr:turns:{preset}   sorted set: client of waiting jobs -> the turn of its last one, and
                              priority -> the turn of the job that was dispatched last
    stablesr:paused           set: presets of which no job starts
    stablesr:deadlines        sorted set: id of a job that may expire -> when

Start-time fair queueing: a job's turn is one after the later of its client's last job and the job
dispatched last, so of two clients with a hundred and with three jobs the second does not wait for
the first, and one alone is served in order. A client is a key, or an address. The whole part of
the number is a round, in which each client has one job, the rest is the order within it.

RQ's list has the next job only, which wakes a slot that waits for it, and before it those that
were put back. Each move is one script, so that a job is always in exactly one place.
"""

from __future__ import annotations

from redis import Redis
from redis.client import Pipeline

from .connection import queue_errors
from .job_store import QUEUE_TTL_S, list_key, queue_key, record_key, waiting_key

PAUSED_KEY = "stablesr:paused"
DEADLINES_KEY = "stablesr:deadlines"

# KEYS  1 RQ's list   2 the queue   3 the turns   ARGV  1 the preset
_DISPATCH = f"""
-- Turns of low priority begin here.
local LOW = 2^32
local is_paused = redis.call('SISMEMBER', '{PAUSED_KEY}', ARGV[1]) == 1
local function dispatch()
    if is_paused or redis.call('EXISTS', KEYS[1]) == 1 then return end
    local id, turn = unpack(redis.call('ZPOPMIN', KEYS[2]))
    if not id then return end
    redis.call('RPUSH', KEYS[1], id)
    local is_low = tonumber(turn) > LOW
    redis.call('ZADD', KEYS[3], turn, is_low and 'low' or 'normal')
    -- Clients whose last turn is over are as those that never came.
    redis.call('ZREMRANGEBYSCORE', KEYS[3], is_low and LOW or 0, '(' .. turn)
end
"""
# ARGV  2 job id.  Answers how many jobs wait, and the place of this one.
_PUSH = f"""{_DISPATCH}
local id = ARGV[2]
local client, priority, deadline = unpack(
    redis.call('HMGET', '{record_key("")}' .. id, 'counted', 'priority', 'deadline'))
client = client or ''
if deadline then redis.call('ZADD', '{DEADLINES_KEY}', deadline, id) end
local lane, least = 'normal', 0
if priority == 'low' then
    lane, least = 'low', LOW
else
    -- A job of low priority that is next but has not started is not next any more.
    local tail = redis.call('LINDEX', KEYS[1], -1)
    if tail and redis.call('HGET', '{record_key("")}' .. tail, 'priority') == 'low' then
        redis.call('RPOP', KEYS[1])
        redis.call('ZADD', KEYS[2], redis.call('ZSCORE', KEYS[3], 'low') or LOW + 1, tail)
    end
end
local function turn(member)
    return tonumber(redis.call('ZSCORE', KEYS[3], member) or least)
end
local name, last = lane .. ' ' .. client, turn(lane)
-- Jobs that were all canceled cost no turns; the record of this one waits already.
if redis.call('ZCARD', '{waiting_key("")}' .. client) > 1 then last = math.max(last, turn(name)) end
local round = math.floor(last) + 1
local _, tail = unpack(redis.call(
    'ZREVRANGEBYSCORE', KEYS[2], '(' .. round + 1, round, 'WITHSCORES', 'LIMIT', 0, 1))
local place = tail and tail + 2^-20 or round
redis.call('ZADD', KEYS[2], place, id)
redis.call('ZADD', KEYS[3], place, name)
redis.call('EXPIRE', KEYS[3], {QUEUE_TTL_S})
dispatch()
local next, rank = redis.call('LLEN', KEYS[1]), redis.call('ZRANK', KEYS[2], id)
return {{next + redis.call('ZCARD', KEYS[2]), rank and next + rank + 1 or 1}}
"""
_ASK = f"{_DISPATCH} dispatch() return is_paused and 0 or 1"


def push(pipe: Pipeline, preset: str, job_id: str) -> None:
    """Adds to a transaction that a job, whose record waits, has its turn.

    The answer is how many jobs of the preset wait, and the job's place among them from 1.
    """
    pipe.eval(_PUSH, 3, *_keys(preset), preset, job_id)


def dispatch(connection: Redis, preset: str) -> bool:
    """Hands the next job to RQ, unless one is there; whether any may start. Raises RedisError."""
    return bool(connection.eval(_ASK, 3, *_keys(preset), preset))


def pause(connection: Redis, preset: str) -> None:
    """No further job of the preset starts, but for one that a worker takes in this moment; jobs
    that run go on, and uploads wait. Raises QueueUnavailable."""
    with queue_errors(connection):
        connection.sadd(PAUSED_KEY, preset)


def resume(connection: Redis, preset: str) -> None:
    """Undoes `pause`; a worker takes the next job within a second. Raises QueueUnavailable."""
    with queue_errors(connection):
        connection.srem(PAUSED_KEY, preset)
        dispatch(connection, preset)


def _keys(preset: str) -> tuple[str, str, str]:
    return list_key(preset), queue_key(preset), f"stablesr:turns:{preset}"
