-- Adds to the number that is kept under a name, or begins with it.
--
-- KEYS[1] -> KEYVAL
-- KEYS[2] -> KEYNAME
-- KEYS[3] -> KEYEND
-- KEYS[4] -> ID
-- ARGV[1] -> name
-- ARGV[2] -> what to add
-- ARGV[3] -> how long to keep it if this makes it, ms; 0: it has no end
-- Returns {the sum, as a string}; {'', the value} if what is there is no number, {'', '', the sum} if that is too large.

local name, now = ARGV[1], clock()
local version, value = live_key(name, now)
local total = tonumber(ARGV[2])
if version then
  if value ~= '0' and not (string.find(value, '^%-?[1-9]%d*$') and math.abs(tonumber(value)) < 9007199254740992) then
    return {'', value}
  end
  total = total + value
end
if math.abs(total) >= 9007199254740992 then return {'', '', string.format('%.0f', total)} end
local text = string.format('%.0f', total)
if text == '-0' then text = '0' end
redis.call('HSET', KEYVAL, name, next_version(now) .. '|' .. text)
if not version then
  redis.call('ZADD', KEYNAME, 0, name)
  if ARGV[3] == '0' then
    redis.call('ZREM', KEYEND, name)
  else
    redis.call('ZADD', KEYEND, now + ARGV[3], name)
  end
end
return {text}
