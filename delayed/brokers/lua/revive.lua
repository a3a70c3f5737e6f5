-- Makes dead letters ready again, as if they had never been claimed, or removes them.
--
-- KEYS[1] -> READY
-- KEYS[2] -> PRIOR
-- KEYS[3] -> NOTI
-- KEYS[4] -> MSG
-- KEYS[5] -> CLAIM
-- KEYS[6] -> DEAD
-- KEYS[7] -> DEADMSG
-- KEYS[8] -> META
-- KEYS[9 ...] -> of the answers to forget; none removes the letters
-- ARGV[...] -> ids
-- Returns the ids of those that were dead letters.

local now, revives = clock(), KEYS[9] and true or false
local found, messages, records, priorities, seen = {}, {}, {}, {}, {}
for i, letter in ipairs(fetch(DEADMSG, ARGV)) do
  local id = ARGV[i]
  if letter and not seen[id] then
    seen[id] = true
    found[#found + 1] = id
    if revives then
      local _, at, delivery, reason, notes = string.find(letter, '^(%d+)|%d+|(%d+)|(%d+)|')
      local message = string.sub(letter, at + reason + notes + 1)
      local good, header = pcall(function()
        return cjson.decode(string.sub(message, 5, 4 + struct.unpack('>I4', message)))
      end)
      local priority = good and type(header) == 'table' and tonumber(header.p) or 0
      if priority ~= math.floor(priority) or math.abs(priority) > 32768 then priority = 0 end
      delivery = tonumber(delivery)
      if delivery < 2e9 then delivery = (math.floor(delivery / 1000000) + 1) * 1000000 end
      messages[#messages + 1], messages[#messages + 2] = id, message
      records[#records + 1], records[#records + 2] = id, delivery .. '||0|' .. priority .. '|0|'
      priorities[#priorities + 1] = tostring(priority)
    end
  end
end
if revives then -- what a full Redis refuses comes first
  send('HSET', MSG, messages)
  send('HSET', CLAIM, records)
  make_ready(found, priorities, 'back', now)
  for i = 9, #KEYS do redis.call('DEL', KEYS[i]) end
end
send('ZREM', DEAD, found)
send('HDEL', DEADMSG, found)
signal()
return found
