-- Keeps a small value under a name, or removes what is there. A full Redis takes nothing new; what changes or removes a
-- value of a certain version, as the holders of locks do, begins with a write that it accepts.
--
-- KEYS[1] -> KEYVAL
-- KEYS[2] -> KEYNAME
-- KEYS[3] -> KEYEND
-- KEYS[4] -> ID
-- ARGV[1] -> name
-- ARGV[2] -> '1' to keep a value, '0' to remove what is there
-- ARGV[3] -> the value
-- ARGV[4] -> how long to keep it, ms; 0: it has no end
-- ARGV[5] -> the version that has to be there, 0 if nothing may be, '' for any
-- ARGV[6] -> '1' if what is there keeps its version
-- Returns the version that it has, or had before it was removed, as a string; '0' if nothing was done.

local name, now = ARGV[1], clock()
local present = live_key(name, now) or '0'
if ARGV[5] ~= '' and ARGV[5] ~= present then return '0' end
if ARGV[2] == '0' then
  if present ~= '0' then drop_keys({name}) end
  return present
end
if present ~= '0' and ARGV[5] ~= '' then redis.call('ZREM', KEYEND, '') end
local version = present
if present == '0' or ARGV[6] ~= '1' then version = next_version(now) end
redis.call('HSET', KEYVAL, name, version .. '|' .. ARGV[3])
redis.call('ZADD', KEYNAME, 0, name)
if ARGV[4] == '0' then
  redis.call('ZREM', KEYEND, name)
else
  redis.call('ZADD', KEYEND, now + ARGV[4], name)
end
return version
