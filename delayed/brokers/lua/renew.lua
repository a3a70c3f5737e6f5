-- Renews leases, and finds the claims of a worker that it did not name. Begins like work.lua with a write that a full
-- Redis accepts: else every lease would end.
--
-- KEYS[1] -> CLAIMED
-- KEYS[2] -> CLAIM
-- KEYS[3] -> MSG
-- KEYS[4] -> HELD
-- KEYS[5] -> META
-- KEYS[6] -> DEAD
-- KEYS[7] -> DEADMSG
-- ARGV[1] -> worker
-- ARGV[2] -> lease, ms; 0 renews nothing and only looks
-- ARGV[3] -> how many unknown claims to return at most, fewer if they are large
-- ARGV[4 ...] -> of each claim: id, 'delivery|nonce|'
-- Returns {'1' (renewed) or '0' (lost) for each, in one string; and of the unknown claims: ids, deliveries, nonces,
--          attempts, each in one string; then a list of what put_away() tells of those that are no tasks; then the
--          messages}.

redis.call('ZREM', CLAIMED, '')
local worker, lease, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = clock()
local till = now + lease
contact(now)

local verdicts, leases, named, known, own = {}, {}, {}, {}, 0
for i = 4, #ARGV, 2 do named[#named + 1] = ARGV[i] end
for i, record in ipairs(fetch(CLAIM, named)) do
  local id, token = named[i], ARGV[2 * i + 3]
  verdicts[i] = '0'
  if record and string.sub(record, 1, #token) == token then
    local _, _, _, _, holder = parts(record)
    if holder == worker then -- nobody renews the claim of another
      verdicts[i] = '1'
      leases[#leases + 1] = till
      leases[#leases + 1] = id
      if not known[id] then own = own + 1 end
      known[id] = true
    end
  end
end
if lease > 0 then send('ZADD', CLAIMED, leases) end

-- Only when the number of its claims is not the number that it named, all claims are looked through.
local ids, deliveries, nonces, attempts, messages, odd = {}, {}, {}, {}, {}, {}
if tonumber(redis.call('HGET', HELD, worker) or 0) ~= own then
  local claimed = redis.call('ZRANGE', CLAIMED, 0, -1)
  local held, bytes = 0, 0
  for i, record in ipairs(fetch(CLAIM, claimed)) do
    local delivery, nonce, attempt, _, holder = parts(record)
    if holder == worker then
      held = held + 1
      local id = claimed[i]
      local why = not known[id] and (fault(id, delivery, attempt) or not tonumber(nonce) and 'its nonce is no number')
      if why then
        held = held - 1
        odd[#odd + 1] = put_away(id, redis.call('HGET', MSG, id) or '', why, now)
        known[id] = true
      end
      local message = not known[id] and #ids < most and bytes < ROOM and redis.call('HGET', MSG, id)
      if message then
        ids[#ids + 1], deliveries[#ids + 1], nonces[#ids + 1] = id, delivery, nonce
        attempts[#ids], messages[#ids] = attempt, message
        bytes = bytes + #message
      end
    end
  end
  if held > 0 then redis.call('HSET', HELD, worker, held) else redis.call('HDEL', HELD, worker) end
end
return {
  table.concat(verdicts),
  table.concat(ids, ' '), table.concat(deliveries, ' '), table.concat(nonces, ' '), table.concat(attempts, ' '),
  odd, unpack(messages)
}
