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
-- ARGV[2] -> how many to return
-- ARGV[3] -> 1: with payloads, 0: without
-- ARGV[4..6] -> the place of the last one, of which only what is behind it is returned; none of these: from the first on
-- Returns {ms of the store's clock, the place of the last one: score, part, name; then for each: id, message, record,
--         score}. Of a dead one, the record is what DEADMSG has and the message is empty; the score is when it is due,
--         its lease ends, or it died. What is ready lies in four parts, one behind the other: 1 and 4 are of PRIOR, 2 is
--         READY, where the score is how many are before it, 3 is what is due of SCHEDULED. The name is the member: of
--         those with the same score, the lesser ones are before it.

local NEAR = 1000 -- elements
local state, limit = ARGV[1], tonumber(ARGV[2])
local last_score, last_part, last_name = ARGV[4], tonumber(ARGV[5]), ARGV[6]
local now = clock()
local reply = {now, '0', 0, ''}
if limit < 1 then return reply end

local names, scores, at_part = {}, {}, {}
local function add(list, part) -- name, score, name, score, ...
  for i = 1, #list, 2 do
    names[#names + 1], scores[#scores + 1], at_part[#at_part + 1] = list[i], list[i + 1], part
  end
end

-- How many elements of a sorted set are before the last one; with `it` counted too.
local function before(key, it)
  local low = redis.call('ZCOUNT', key, '-inf', '(' .. last_score)
  local high = redis.call('ZCOUNT', key, '-inf', last_score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local name = redis.call('ZRANGE', key, middle, middle)[1]
    if name < last_name or it and name == last_name then low = middle + 1 else high = middle end
  end
  return low
end

-- A part of a sorted set, from one rank up to another.
local function ranks(key, part, from, to)
  if last_part and last_part > part then return end
  if last_part == part then from = math.max(from, before(key, true)) end
  to = math.min(to, from + limit - #names)
  if from < to then add(redis.call('ZRANGE', key, from, to - 1, 'WITHSCORES'), part) end
end

-- How many elements of the list are before the last one, it counted too. They move on while others go, so it is looked
-- for near its old place first, and then from the front. Where it is no more those before it have most probably gone too.
local function before_in_list()
  local from = math.max(tonumber(last_score) - NEAR, 0)
  for i, id in ipairs(redis.call('LRANGE', READY, from, from + 2 * NEAR)) do
    if id == last_name then return from + i end
  end
  local found = redis.call('LPOS', READY, last_name)
  return found and found + 1 or 0
end

local function list(part)
  if last_part and last_part > part or #names >= limit then return end
  local from = last_part == part and before_in_list() or 0
  for i, id in ipairs(redis.call('LRANGE', READY, from, from + limit - #names - 1)) do
    add({id, tostring(from + i - 1)}, part)
  end
end

if state == 'scheduled' then
  ranks(SCHEDULED, 1, redis.call('ZCOUNT', SCHEDULED, '-inf', now), math.huge)
elseif state == 'running' then
  ranks(CLAIMED, 1, 0, math.huge)
elseif state == 'dead' then
  local from = last_part and redis.call('ZCARD', DEAD) - before(DEAD, false) or 0
  add(redis.call('ZREVRANGE', DEAD, from, from + limit - 1, 'WITHSCORES'), 1)
else
  local high = redis.call('ZCOUNT', PRIOR, '-inf', '0')
  ranks(PRIOR, 1, 0, high)
  list(2)
  ranks(SCHEDULED, 3, 0, redis.call('ZCOUNT', SCHEDULED, '-inf', now))
  ranks(PRIOR, 4, high, math.huge)
end

if #names > 0 then reply = {now, scores[#names], at_part[#names], names[#names]} end
local ids = {}
for i, name in ipairs(names) do
  ids[i] = state == 'ready' and (at_part[i] == 1 or at_part[i] == 4) and string.sub(name, 17) or name
end

-- Where the message that begins at `at` of `text` is to be cut, so that it has no payload.
local function header_end(text, at)
  if #text < at + 3 then return #text end
  local size, more = header_size(text, at)
  return at + 3 + size + (more and 1 or 0)
end

local messages, records
if ARGV[3] == '1' then
  messages = state == 'dead' and {} or fetch(MSG, ids)
  records = fetch(state == 'dead' and DEADMSG or CLAIM, ids)
else -- one at a time, and only its beginning is kept: together they may be larger than memory
  messages, records = {}, state == 'dead' and {} or fetch(CLAIM, ids)
  for i, id in ipairs(ids) do
    local text = redis.call('HGET', state == 'dead' and DEADMSG or MSG, id)
    if text and state == 'dead' then
      local at, reason, notes = select(2, string.find(text, '^%d+|%d+|(%d+)|(%d+)|'))
      records[i] = string.sub(text, 1, header_end(text, at + reason + notes + 1))
    elseif text then
      messages[i] = string.sub(text, 1, header_end(text, 1))
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
