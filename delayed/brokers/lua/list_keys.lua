-- Lists names of small values.
--
-- KEYS[1] -> KEYNAME
-- KEYS[2] -> KEYEND
-- ARGV[1] -> what they begin with
-- ARGV[2] -> how many at most
-- Returns them, sorted by their bytes.

local prefix, most, now, found, at = ARGV[1], tonumber(ARGV[2]), clock(), {}, 0
local low, high = '[' .. prefix, '(' .. prefix .. '\255' -- a byte that no text has
while #found < most do
  local page = redis.call('ZRANGEBYLEX', KEYNAME, low, high, 'LIMIT', at, math.min(most, 1000))
  if #page == 0 then break end
  at = at + #page
  for i, till in ipairs(redis.call('ZMSCORE', KEYEND, unpack(page))) do
    if #found < most and not (till and tonumber(till) <= now) then found[#found + 1] = page[i] end
  end
end
return found
