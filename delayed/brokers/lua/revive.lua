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
-- Returns how many of the ids were looked at, fewer than all if the letters are large; then those of dead letters.

local now, revives = clock(), KEYS[9] and true or false
local found, messages, records, priorities, answers, seen = {}, {}, {}, {}, {}, {}
local looked, bytes = 0, 0
while looked < #ARGV and bytes < ROOM do
  looked = looked + 1
  local id = ARGV[looked]
  local letter = not seen[id] and redis.call(revives and 'HGET' or 'HEXISTS', DEADMSG, id)
  if letter and letter ~= 0 then
    seen[id] = true
    found[#found + 1] = id
    if revives then
      bytes = bytes + #letter
      answers[#answers + 1] = KEYS[8 + looked]
      local _, at, delivery, reason, notes = string.find(letter, '^(%d+)|%d+|(%d+)|(%d+)|')
      local message = string.sub(letter, at + reason + notes + 1)
      local priority = tonumber(header_field(message, 'p')) or 0
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
  for _, answer in ipairs(answers) do redis.call('DEL', answer) end
end
send('ZREM', DEAD, found)
send('HDEL', DEADMSG, found)
signal()
table.insert(found, 1, looked)
return found
