-- Stores messages, all or none. Its first write is one that Redis refuses when it is full, so that nothing of it
-- happens.
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
-- KEYS[10] -> FAIR
-- ARGV[1] -> producer session
-- ARGV[2] -> sequence number in it
-- ARGV[3] -> how many of the messages are plain: no delay, priority 0, not fair; they come first
-- ARGV[4 ...] -> id, message of each
-- after them, for each that is not plain -> delay in ms, priority, tenant ('': it is not fair)
-- Returns 1 if they are stored now, 0 if they were before (a resend).

local session, seq, plain = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local last = redis.call('HGET', PROD, session)
if last and tonumber(last) >= seq then return 0 end
redis.call('HSET', PROD, session, seq)
local now = clock()
redis.call('ZADD', PRODT, now, session)

local count = plain + (#ARGV - 3 - 2 * plain) / 5
local stop = 3 + 2 * count
for i = 4, stop, CHUNK do
  redis.call('HSET', MSG, unpack(ARGV, i, math.min(i + CHUNK - 1, stop)))
end

local ids = {}
for i = 1, plain do ids[i] = ARGV[2 + 2 * i] end
send('RPUSH', READY, ids)

local sooner = false
for i = plain + 1, count do
  local id, at = ARGV[2 + 2 * i], stop + 3 * (i - plain)
  local delay, priority, tenant = tonumber(ARGV[at - 2]), ARGV[at - 1], ARGV[at]
  if priority ~= '0' then redis.call('HSET', CLAIM, id, '0||0|' .. priority .. '|0|') end
  if delay == 0 and tenant ~= '' then
    take_turn(id, priority, tenant, now)
  elseif delay == 0 then
    redis.call('ZADD', PRIOR, -priority, member(id))
  else
    redis.call('ZADD', SCHEDULED, now + delay, id)
    if tenant ~= '' then redis.call('HSET', FAIR, '#' .. id, tenant) end
    sooner = sooner or redis.call('ZRANK', SCHEDULED, id) == 0
  end
end

if plain > 0 then wake() else signal(sooner) end
return 1
