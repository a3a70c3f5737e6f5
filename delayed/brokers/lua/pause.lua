-- Pauses a queue, or ends that. Begins with a write that a full Redis accepts.
--
-- KEYS[1] -> META
-- KEYS[2] -> NOTI
-- KEYS[3] -> READY
-- KEYS[4] -> PRIOR
-- ARGV[1] -> 1 to pause, 0 to resume
-- Returns nothing.

redis.call('DEL', NOTI)
if ARGV[1] == '1' then
  redis.call('HSET', META, 'paused', 1)
else
  redis.call('HDEL', META, 'paused')
  signal(true)
end
