-- Moves a job's record, whole or not at all, counts that, and publishes it.
--
-- KEYS  1 the record   2 the agenda   3 the counts   4 the webhooks' agenda
-- ARGV  1 job id   2 event   3 {from: to}   4 {from: to} once a cancel was asked
--       5 {field: value} to set   6 [field, ...] to drop   7 {ended state: true}
--       8 seconds until an active job is looked at   9 seconds an expired one is known
--       10 the worker that says so, or '' for any   11 the channel
--       12 what the key of an owner's waiting jobs begins with
--
-- Answers {1 moved | 0 refused | -1 unknown, state, the record as field, value, ...}. The tables
-- are those of jobs/states.py, handed over with each call, so that there is one place for them.

local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {-1, ''} end
local marked = redis.call('HGET', KEYS[1], 'cancel_requested') == '1'
local to = cjson.decode(marked and ARGV[4] or ARGV[3])[state]
local holder = redis.call('HGET', KEYS[1], 'worker')
local stranger = ARGV[10] ~= '' and holder and holder ~= ARGV[10]
if not to or stranger then return {0, state, redis.call('HGETALL', KEYS[1])} end

local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
local ended = cjson.decode(ARGV[7])
for _, field in ipairs(cjson.decode(ARGV[6])) do redis.call('HDEL', KEYS[1], field) end
for field, value in pairs(cjson.decode(ARGV[5])) do redis.call('HSET', KEYS[1], field, value) end
redis.call('HSET', KEYS[1], 'state', to)
local revision = redis.call('HINCRBY', KEYS[1], 'revision', 1)
redis.call('PUBLISH', ARGV[11], ARGV[1] .. ' ' .. revision .. ' ' .. to)
if to ~= state then
  redis.call('HINCRBY', KEYS[3], 'stablesr_job_moves_total|state=' .. to, 1)
  local minute = KEYS[3] .. ':' .. math.floor(time[1] / 60)
  redis.call('HINCRBY', minute, to, 1)
  redis.call('EXPIRE', minute, 180)
  local quota_key = redis.call('HGET', KEYS[1], 'counted')
    or redis.call('HGET', KEYS[1], 'owner') or ''
  if to == 'queued' then
    redis.call('ZADD', ARGV[12] .. quota_key, redis.call('HGET', KEYS[1], 'created_at'), ARGV[1])
  elseif state == 'queued' then
    redis.call('ZREM', ARGV[12] .. quota_key, ARGV[1])
  end
end
if ended[to] and not ended[state] then
  redis.call('HSET', KEYS[1], 'ended_at', now)
  redis.call('HDEL', KEYS[1], 'progress')
  if redis.call('HEXISTS', KEYS[1], 'webhook_url') == 1 then
    redis.call('ZADD', KEYS[4], now, ARGV[1])
  end
end
if ARGV[2] == 'start' and not ended[to] then
  redis.call('HSET', KEYS[1], 'started_at', now)
  redis.call('HINCRBY', KEYS[1], 'attempt', 1)
end

local keep = tonumber(redis.call('HGET', KEYS[1], 'keep_s'))
local wait = tonumber(redis.call('HGET', KEYS[1], 'wait_s'))
local look_again, tombstone = tonumber(ARGV[8]), tonumber(ARGV[9])
if not ended[to] then
  redis.call('EXPIRE', KEYS[1], wait + tombstone)
  redis.call('ZADD', KEYS[2], now + look_again, ARGV[1])
elseif to == 'canceled' then
  redis.call('EXPIRE', KEYS[1], keep)
  redis.call('ZADD', KEYS[2], now, ARGV[1])
elseif to == 'expired' then
  redis.call('EXPIRE', KEYS[1], tombstone)
  redis.call('ZADD', KEYS[2], now, ARGV[1])
else
  redis.call('EXPIRE', KEYS[1], keep + tombstone)
  redis.call('ZADD', KEYS[2], now + keep, ARGV[1])
end
return {1, to, redis.call('HGETALL', KEYS[1])}
