-- KEYS[1] -> WORKERS
-- KEYS[2] -> WORKINFO
-- Returns worker, what it says of itself, and so on, for the announcements that hold.

local reply = {}
local names = redis.call('ZRANGEBYSCORE', WORKERS, '(' .. clock(), '+inf')
for i, info in ipairs(fetch(WORKINFO, names)) do
  if info then
    reply[#reply + 1] = names[i]
    reply[#reply + 1] = info
  end
end
return reply
