-- KEYS[1] -> WORKERS
-- KEYS[2] -> WORKINFO
-- ARGV[1] -> worker
-- ARGV[2] -> how long the announcement holds, ms
-- ARGV[3] -> what it says of itself, JSON; empty says goodbye
-- Returns nothing.

redis.call('ZREM', WORKERS, ARGV[1])
if ARGV[3] == '' then
  redis.call('HDEL', WORKINFO, ARGV[1])
else
  redis.call('ZADD', WORKERS, clock() + ARGV[2], ARGV[1])
  redis.call('HSET', WORKINFO, ARGV[1], ARGV[3])
end
