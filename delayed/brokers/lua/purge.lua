-- Removes messages of one state, a page of them, so that no call is long.
--
-- KEYS[1] -> READY
-- KEYS[2] -> PRIOR
-- KEYS[3] -> NOTI
-- KEYS[4] -> SCHEDULED
-- KEYS[5] -> MSG
-- KEYS[6] -> CLAIM
-- KEYS[7] -> DEAD
-- KEYS[8] -> DEADMSG
-- KEYS[9] -> META
-- ARGV[1] -> state: scheduled, ready or dead
-- ARGV[2] -> how many at most
-- Returns how many were removed; fewer than ARGV[2] means that there are no more.

local state, most = ARGV[1], tonumber(ARGV[2])
local removed = 0

local function drop(ids)
  send('HDEL', MSG, ids)
  send('HDEL', CLAIM, ids)
  removed = removed + #ids
end
local function drop_scheduled(low, high)
  local ids = redis.call('ZRANGEBYSCORE', SCHEDULED, low, high, 'LIMIT', 0, most - removed)
  send('ZREM', SCHEDULED, ids)
  drop(ids)
end

if state == 'dead' then
  local ids = redis.call('ZRANGE', DEAD, 0, most - 1)
  send('ZREM', DEAD, ids)
  send('HDEL', DEADMSG, ids)
  return #ids
elseif state == 'scheduled' then
  drop_scheduled('(' .. clock(), '+inf')
else
  drop(redis.call('LPOP', READY, most) or {})
  local names, ids = {}, {}
  if removed < most then names = redis.call('ZRANGE', PRIOR, 0, most - removed - 1) end -- up to -1 would be all
  for i, name in ipairs(names) do ids[i] = string.sub(name, 17) end
  send('ZREM', PRIOR, names)
  drop(ids)
  if removed < most then drop_scheduled('-inf', clock()) end
end
signal()
return removed
