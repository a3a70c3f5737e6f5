-- Looks at one message.
--
-- KEYS[1] -> SCHEDULED
-- KEYS[2] -> CLAIMED
-- KEYS[3] -> MSG
-- KEYS[4] -> CLAIM
-- KEYS[5] -> DEAD
-- KEYS[6] -> DEADMSG
-- ARGV[1] -> id
-- Returns {ms of the store's clock, state, message, record, score}, as peek.lua does, or {ms} if there is none.

local id, now = ARGV[1], clock()
local message, record = redis.call('HGET', MSG, id), redis.call('HGET', CLAIM, id) or ''
if not message then
  record = redis.call('HGET', DEADMSG, id)
  if not record then return {now} end
  return {now, 'dead', '', record, redis.call('ZSCORE', DEAD, id) or '0'}
end
local lease_end = redis.call('ZSCORE', CLAIMED, id)
if lease_end then return {now, 'running', message, record, lease_end} end
local due = redis.call('ZSCORE', SCHEDULED, id)
if due and tonumber(due) > now then return {now, 'scheduled', message, record, due} end
return {now, 'ready', message, record, '0'}
