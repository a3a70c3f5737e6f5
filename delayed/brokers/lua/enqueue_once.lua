-- Stores one message unless its key is held. Its first write is one that Redis refuses when it is full, so that nothing
-- of it happens.
--
-- KEYS[1] -> PROD
-- KEYS[2] -> PRODT
-- KEYS[3] -> MSG
-- KEYS[4] -> READY
-- KEYS[5] -> NOTI
-- KEYS[6] -> PRIOR
-- KEYS[7] -> SCHEDULED
-- KEYS[8] -> CLAIM
-- KEYS[9] -> META
-- KEYS[10] -> CLAIMED
-- KEYS[11] -> ONCE
-- KEYS[12] -> FAIR
-- ARGV[1] -> producer session
-- ARGV[2] -> sequence number in it
-- ARGV[3] -> id
-- ARGV[4] -> message
-- ARGV[5] -> delay, ms
-- ARGV[6] -> priority
-- ARGV[7] -> key
-- ARGV[8] -> for how long the task holds it: 'd' until it is done, 'b' until it has begun, or ms from now
-- ARGV[9] -> whether it takes the key away from another: 1 or 0
-- ARGV[10] -> tenant; '': it is not fair
-- Returns the id of the task that holds the key now: this one if it is stored, now or before (a resend).

local session, seq, id, key, rule = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[7], ARGV[8]
local delay, priority, now = tonumber(ARGV[5]), ARGV[6], clock()
local last = redis.call('HGET', PROD, session)
if last and tonumber(last) >= seq then return id end
local other = holder(redis.call('HGET', ONCE, key), now)
if other and ARGV[9] == '0' then return other end

redis.call('HSET', PROD, session, seq)
redis.call('ZADD', PRODT, now, session)
local withdrawn = other and not redis.call('ZSCORE', CLAIMED, other) and redis.call('HDEL', MSG, other) == 1
if withdrawn then
  redis.call('HDEL', CLAIM, other)
  withdraw(other)
end
redis.call('HSET', ONCE, key, id .. '|' .. (tonumber(rule) and string.format('%.0f', now + rule) or rule))
redis.call('HSET', MSG, id, ARGV[4])
if priority ~= '0' then redis.call('HSET', CLAIM, id, '0||0|' .. priority .. '|0|') end
if delay > 0 then
  redis.call('ZADD', SCHEDULED, now + delay, id)
  if ARGV[10] ~= '' then redis.call('HSET', FAIR, '#' .. id, ARGV[10]) end
elseif ARGV[10] ~= '' then
  take_turn(id, priority, ARGV[10], now)
elseif priority ~= '0' then
  redis.call('ZADD', PRIOR, -priority, member(id))
else
  redis.call('RPUSH', READY, id)
end
signal(delay > 0 and redis.call('ZRANK', SCHEDULED, id) == 0)

-- So that keys which are over do not grow more than those that are held: two more are looked at for each that is new.
local some = redis.call('HRANDFIELD', ONCE, 2, 'WITHVALUES')
for i = 1, #some, 2 do
  if not holder(some[i + 1], now) then redis.call('HDEL', ONCE, some[i]) end
end
return id
