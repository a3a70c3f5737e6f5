-- Looks at messages of one state, in the order in which they will be served (dead: newest first).
--
-- KEYS[1] -> READY
-- KEYS[2] -> PRIOR
-- KEYS[3] -> SCHEDULED
-- KEYS[4] -> CLAIMED
-- KEYS[5] -> MSG
-- KEYS[6] -> CLAIM
-- KEYS[7] -> DEAD
-- KEYS[8] -> DEADMSG
-- ARGV[1] -> state: scheduled, ready, running or dead
-- ARGV[2] -> how many to skip
-- ARGV[3] -> how many to return
-- ARGV[4] -> 1: with payloads, 0: without
-- Returns {ms of the store's clock, then for each: id, message, record, score}. Of a dead one, the record is what
--         DEADMSG has and the message is empty; the score is when it is due, its lease ends, or it died, else 0.

local state, skip, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = clock()
local reply = {now}
if limit < 1 then return reply end

local ids, scores = {}, {}
local function add(list) -- id, score, id, score, ...
  for i = 1, #list, 2 do
    ids[#ids + 1], scores[#scores + 1] = list[i], list[i + 1]
  end
end

if state == 'scheduled' then
  add(redis.call('ZRANGEBYSCORE', SCHEDULED, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', skip, limit))
elseif state == 'running' then
  add(redis.call('ZRANGE', CLAIMED, skip, skip + limit - 1, 'WITHSCORES'))
elseif state == 'dead' then
  add(redis.call('ZREVRANGE', DEAD, skip, skip + limit - 1, 'WITHSCORES'))
else
  -- Four lists, one behind the other; of each the part that the page needs.
  local function page(size, take)
    if skip >= size then skip = skip - size return end
    local n = math.min(size - skip, limit - #ids)
    if n > 0 then
      for _, id in ipairs(take(skip, n)) do ids[#ids + 1], scores[#scores + 1] = id, '0' end
    end
    skip = 0
  end
  local function prior(low, high)
    page(redis.call('ZCOUNT', PRIOR, low, high), function(from, n)
      local list = redis.call('ZRANGEBYSCORE', PRIOR, low, high, 'LIMIT', from, n)
      for i, name in ipairs(list) do list[i] = string.sub(name, 17) end
      return list
    end)
  end
  prior('-inf', '0')
  page(redis.call('LLEN', READY), function(from, n) return redis.call('LRANGE', READY, from, from + n - 1) end)
  page(redis.call('ZCOUNT', SCHEDULED, '-inf', now), function(from, n)
    return redis.call('ZRANGEBYSCORE', SCHEDULED, '-inf', now, 'LIMIT', from, n)
  end)
  prior('(0', '+inf')
end

-- Where the header of the message ends that begins at `at` of `text`.
local function header_end(text, at)
  return #text < at + 3 and #text or at + 3 + struct.unpack('>I4', text, at)
end

local messages = state == 'dead' and {} or fetch(MSG, ids)
local records = fetch(state == 'dead' and DEADMSG or CLAIM, ids)
if ARGV[4] == '0' then
  for i in ipairs(ids) do
    if messages[i] then
      messages[i] = string.sub(messages[i], 1, header_end(messages[i], 1))
    elseif state == 'dead' and records[i] then
      local at, reason, notes = select(2, string.find(records[i], '^%d+|%d+|(%d+)|(%d+)|'))
      at = at + reason + notes
      records[i] = string.sub(records[i], 1, header_end(records[i], at + 1))
    end
  end
end
for i, id in ipairs(ids) do
  if messages[i] or state == 'dead' and records[i] then
    reply[#reply + 1] = id
    reply[#reply + 1] = messages[i] or ''
    reply[#reply + 1] = records[i] or ''
    reply[#reply + 1] = scores[i]
  end
end
return reply
