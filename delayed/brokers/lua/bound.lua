-- Sets the bounds of the dead letters.
--
-- KEYS[1] -> META
-- ARGV[1] -> how many to keep
-- ARGV[2] -> how long to keep them, ms

redis.call('HSET', META, 'dead_most', ARGV[1], 'dead_age', ARGV[2])
