-- Lets one scheduled or ready message become due at another time. Looks through the ready ones, as remove.lua does.
-- Begins like work.lua with a write that a full Redis accepts.
--
-- KEYS[1] -> READY
-- KEYS[2] -> PRIOR
-- KEYS[3] -> NOTI
-- KEYS[4] -> SCHEDULED
-- KEYS[5] -> CLAIMED
-- KEYS[6] -> MSG
-- KEYS[7] -> CLAIM
-- KEYS[8] -> META
-- ARGV[1] -> id
-- ARGV[2] -> ms from now until it is due; 0: it is ready, behind what is
-- Returns 1 if it was done, 0 if there is none such.

redis.call('ZREM', CLAIMED, '')
local id, delay, now = ARGV[1], tonumber(ARGV[2]), clock()
if redis.call('ZSCORE', CLAIMED, id) or redis.call('HEXISTS', MSG, id) == 0 then return 0 end
withdraw(id)
local sooner = false
if delay > 0 then
  redis.call('ZADD', SCHEDULED, now + delay, id)
  sooner = redis.call('ZRANK', SCHEDULED, id) == 0
else
  local _, _, _, priority = parts(redis.call('HGET', CLAIM, id))
  make_ready({id}, {priority}, 'back', now)
end
signal(sooner)
return 1
