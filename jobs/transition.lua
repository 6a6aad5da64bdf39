-- Makes a job's record or moves it, whole or not at all, counts that, and publishes it.
--
-- KEYS  1 the record   2 the agenda   3 the counts   4 the webhooks' agenda
-- ARGV  1 job id   2 event   3 {field: value} to set   4 [field, ...] to drop
--       5 the worker that says so, or '' for any
--
-- Answers {1 moved | 0 refused | -1 unknown, the record as field, value, ...}. `constants` has the
-- tables of jobs/states.py and other numbers and names that Python knows; jobs/job_store.py defines
-- it in front of this text. A job that is not there yet has the state ''.

local id, event, worker = ARGV[1], ARGV[2], ARGV[5]
local state = redis.call('HGET', KEYS[1], 'state') or ''
local marked = redis.call('HGET', KEYS[1], 'cancel_requested') == '1'
local to = constants[marked and 'when_marked' or 'transitions'][event][state]
if state == '' and not to then return {-1} end
local holder = redis.call('HGET', KEYS[1], 'worker')
local stranger = worker ~= '' and holder and holder ~= worker
if not to or stranger then return {0, redis.call('HGETALL', KEYS[1])} end

local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
local ends = constants.final[to] and not constants.final[state]
for _, field in ipairs(cjson.decode(ARGV[4])) do redis.call('HDEL', KEYS[1], field) end
for field, value in pairs(cjson.decode(ARGV[3])) do redis.call('HSET', KEYS[1], field, value) end
redis.call('HSET', KEYS[1], 'state', to)
local revision = redis.call('HINCRBY', KEYS[1], 'revision', 1)
redis.call('PUBLISH', constants.channel, id .. ' ' .. revision .. ' ' .. to)
local created_at, owner, quota_key, keep, wait, ended_at = unpack(
  redis.call('HMGET', KEYS[1], 'created_at', 'owner', 'counted', 'keep_s', 'wait_s', 'ended_at'))
local jobs = constants.jobs .. (owner or '')
local waiting = constants.waiting .. (quota_key or owner or '')
local tombstone = constants.tombstone_s

if to ~= state then
  redis.call('HINCRBY', KEYS[3], constants.count_field .. to, 1)
  local minute = KEYS[3] .. ':' .. math.floor(time[1] / 60)
  redis.call('HINCRBY', minute, to, 1)
  redis.call('EXPIRE', minute, constants.minute_ttl_s)
  if to == 'queued' then
    redis.call('ZADD', waiting, created_at, id)
    -- No job waits for longer than this, so older ids lead nowhere.
    local longest = wait + keep + 2 * tombstone
    redis.call('ZREMRANGEBYSCORE', waiting, '-inf', now - longest)
    redis.call('EXPIRE', waiting, longest)
  elseif state == 'queued' then
    redis.call('ZREM', waiting, id)
  end
  redis.call('ZREM', jobs .. ':' .. state, id)
  redis.call('ZADD', jobs .. ':' .. to, created_at, id)
end
if event == 'create' then
  redis.call('ZADD', jobs, created_at, id)
  -- With each job that comes, two of the oldest go whose records are gone.
  for _, old in ipairs(redis.call('ZRANGE', jobs, 0, 1)) do
    if redis.call('EXISTS', constants.record .. old) == 0 then
      redis.call('ZREM', jobs, old)
      for any in pairs(constants.final) do redis.call('ZREM', jobs .. ':' .. any, old) end
    end
  end
end
if event == 'retry' then
  -- Its new end will be told instead.
  redis.call('ZREM', KEYS[4], id)
  redis.call('HDEL', KEYS[4] .. ':attempts', id)
end
if ends then
  redis.call('HSET', KEYS[1], 'ended_at', now)
  redis.call('HDEL', KEYS[1], 'progress')
  if redis.call('HEXISTS', KEYS[1], 'webhook_url') == 1 then
    redis.call('ZADD', KEYS[4], now, id)
  end
end
if event == 'start' and not ends then
  redis.call('HSET', KEYS[1], 'started_at', now)
  redis.call('HINCRBY', KEYS[1], 'attempt', 1)
end

-- Seconds until the record goes, and until the job is looked at.
local life, look = keep + tombstone, keep
if not constants.final[to] then
  life, look = wait + tombstone, constants.look_again_s
elseif to == 'canceled' then
  life, look = tonumber(keep), 0
elseif to == 'expired' then
  life, look = tombstone, 0
end
if event == 'purge' then
  look = 0
  redis.call('HSETNX', KEYS[1], 'purged_after_s', math.min(keep, math.floor(now - ended_at)))
end
if event ~= 'purge' or to ~= state then
  redis.call('EXPIRE', KEYS[1], life)
  for _, index in ipairs({jobs, jobs .. ':' .. to}) do
    if redis.call('TTL', index) < life then redis.call('EXPIRE', index, life) end
  end
end
redis.call('ZADD', KEYS[2], now + look, id)
return {1, redis.call('HGETALL', KEYS[1])}
