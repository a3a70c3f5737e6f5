-- Says that a worker lives, and hands it the orders that wait for it.
--
-- KEYS[1] -> WORKERS
-- KEYS[2] -> WORKINFO
-- KEYS[3] -> ORDERS
-- ARGV[1] -> worker
-- ARGV[2] -> how long the announcement holds, ms
-- ARGV[3] -> what it says of itself, JSON; empty says goodbye
-- Returns the orders, each JSON; they are removed.

local worker, now = ARGV[1], clock()
redis.call('ZREM', WORKERS, worker)
if ARGV[3] == '' then
  redis.call('HDEL', WORKINFO, worker)
else
  redis.call('ZADD', WORKERS, now + ARGV[2], worker)
  redis.call('HSET', WORKINFO, worker, ARGV[3])
end

local mine, gone, all = {}, {}, redis.call('HGETALL', ORDERS)
for i = 1, #all, 2 do
  local name = string.match(all[i], '^(.*)/')
  local till, order = string.match(all[i + 1], '^(%d+)|(.*)$')
  local late = now >= tonumber(till)
  if name == worker and not late then mine[#mine + 1] = order end
  if name == worker or late then gone[#gone + 1] = all[i] end
end
send('HDEL', ORDERS, gone)
return mine
