-- Counts the messages in each state. What is due counts as ready: the next claim takes it.
--
-- KEYS[1] -> READY
-- KEYS[2] -> PRIOR
-- KEYS[3] -> SCHEDULED
-- KEYS[4] -> CLAIMED
-- KEYS[5] -> DEAD
-- Returns {scheduled, ready, running, dead}.

local due = redis.call('ZCOUNT', SCHEDULED, '-inf', clock())
return {
  redis.call('ZCARD', SCHEDULED) - due,
  redis.call('LLEN', READY) + redis.call('ZCARD', PRIOR) + due,
  redis.call('ZCARD', CLAIMED),
  redis.call('ZCARD', DEAD)
}
