-- Reserves ids. They follow the clock, so that they do not go backwards when the counter is lost.
--
-- KEYS[1] -> ID
-- ARGV[1] -> how many
-- Returns the first, as a string.

-- A write without effect that a full Redis accepts, and then it accepts the other: that there is no room is for the
-- enqueue to find, which has room to ask for.
redis.call('PERSIST', ID)
local last = math.max(tonumber(redis.call('GET', ID) or 0), clock() * 2048)
redis.call('SET', ID, string.format('%.0f', last + ARGV[1]))
return string.format('%.0f', last + 1)
