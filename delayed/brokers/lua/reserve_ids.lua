-- Reserves ids. They follow the clock, so that they do not go backwards when the counter is lost.
--
-- KEYS[1] -> ID
-- ARGV[1] -> how many
-- Returns the first, as a string.

local last = math.max(tonumber(redis.call('GET', ID) or 0), clock() * 2048)
redis.call('SET', ID, string.format('%.0f', last + ARGV[1]))
return string.format('%.0f', last + 1)
