-- Leaves an order for a worker.
--
-- KEYS[1] -> ORDERS
-- ARGV[1] -> worker
-- ARGV[2] -> the order's id, without a slash
-- ARGV[3] -> the order, JSON
-- ARGV[4] -> how long it waits to be fetched, ms
-- Returns nothing.

local ttl = ARGV[4] + 0
redis.call('HSET', ORDERS, ARGV[1] .. '/' .. ARGV[2], string.format('%.0f', clock() + ttl) .. '|' .. ARGV[3])
redis.call('PEXPIRE', ORDERS, math.max(ttl, redis.call('PTTL', ORDERS))) -- should no worker ever come
