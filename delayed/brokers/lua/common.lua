-- What every script shares. The loader puts it behind the script's key names and before the script: a header line
--     -- KEYS[2] -> PRIOR
-- makes `local PRIOR = KEYS[2]` of the header, so that the contract and the code can't differ.
--
-- The keys of a queue Q (in {} on a cluster) and their names here:
--     READY     Q            list    ids of the ready tasks of priority 0, the next one first
--     PRIOR     Q_prior      zset    ready tasks of other priorities, and the fair ones of priority 0: score -priority,
--                                    member = place (16 digits) .. id
--     ID        Q_id         string  the last id that was reserved
--     NOTI      Q_noti       list    the wake-up: at most one token, '1' when something is ready, 's' when the first
--                                    scheduled task has changed; a sleeper pops it, the next claim puts it back
--     SCHEDULED Q_enqueued   zset    ids of the scheduled tasks by due time, ms
--     CLAIMED   Q_dequeued   zset    ids of the claimed tasks by the end of their lease, ms
--     MSG       Q_msg        hash    id -> length of the header (4 bytes, big-endian) .. header .. payload; and one byte
--                                    more, which says nothing, if the highest bit of the length is set
--     CLAIM     Q_claim      hash    id -> delivery|nonce|attempt|priority|losses|worker; no worker: it is not claimed
--                                    now. Behind the losses are the notes of its attempts, if any, each in a line of
--                                    its own. A task that was never claimed and has priority 0 has none. A dead letter
--                                    that is revived goes on with the next million of deliveries
--     LAST      Q_last       hash    worker -> seq|ms|nonce|id,id,...: the answer of its last claim
--     HELD      Q_held       hash    worker -> how many claims it holds
--     PROD      Q_prod       hash    producer session -> its last sequence number
--     PRODT     Q_prodt      zset    producer session -> when it was last seen, ms; it may have been again a while
--                                    later, see enqueue_plain.lua
--     META      Q_meta       hash    contact (when a worker or sweeper last called), lease, grace_until, outage (when
--                                    the first one within the grace began), jump, tidied (all ms), the cursors of the sweep, paused while the queue is, turn
--                                    (whose it is, of the fair and the others), and if somebody has said so dead_most
--                                    and dead_age (ms), the bounds of its dead letters
--     DEAD      Q_dead       zset    ids of the dead letters by time of death, ms
--     DEADMSG   Q_dead_msg   hash    id -> delivery|attempt|length of the reason|length of the notes|reason ..
--                                    notes .. message
--     WORKERS   Q_workers    zset    workers by when their announcement ends, ms
--     WORKINFO  Q_workinfo   hash    worker -> what it says of itself, JSON
--     ORDERS    Q_orders     hash    worker/id -> until when (ms)|what it is asked to do, JSON
--     ONCE      Q_once       hash    key of a unique task -> its id|for how long it holds it: 'd' until it is done, 'b'
--                                    until it has begun, or until when, ms
--     FAIR      Q_fair       hash    priority:tenant -> the last place of his; #id -> tenant of a fair task that is scheduled
--     ANSWER    Q_answer:id  string  the answer of a task; it has a time to live
--     KEYVAL    Q_keys       hash    name -> version|value: small values
--     KEYNAME   Q_keys_names zset    their names, all of score 0
--     KEYEND    Q_keys_ends  zset    their names by when they are forgotten, ms; those without an end are not here
-- Whoever waits for answers subscribes to the channel Q_answers.
--
-- Ids are strings throughout: Lua would print a number of 16 digits as 1.7e+15. A missing reply is false, not nil.

local ROOM = 8 * 1024 * 1024 -- bytes of messages in one answer; more is not added to an answer that has as many
local NOTES = 20 -- attempts that a task has notes of
local CHUNK = 4000 -- arguments per command, an even number; unpack() fails at about 8,000

-- The store's clock, ms.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Sends `command key` with the whole list, in chunks.
local function send(command, key, list)
  for i = 1, #list, CHUNK do
    redis.call(command, key, unpack(list, i, math.min(i + CHUNK - 1, #list)))
  end
end

-- send() of pairs into a hash or zset that is small now and then. Redis begins a small one as one packed string, which
-- it searches from its beginning for every member; with a busy worker that takes more time than all the rest. A member
-- that is too long for that makes a table of it, which it stays until it is empty again.
local LONG, MANY = string.rep('-', 65), 32
local function put_many(add, remove, key, list)
  local many = #list >= MANY
  if many then redis.call(add, key, add == 'ZADD' and 0 or LONG, LONG) end
  send(add, key, list)
  if many then redis.call(remove, key, LONG) end
end

-- HMGET of any number of fields.
local function fetch(key, fields)
  if #fields == 0 then return {} end
  if #fields <= CHUNK then return redis.call('HMGET', key, unpack(fields)) end
  local all = {}
  for i = 1, #fields, CHUNK do
    for _, value in ipairs(redis.call('HMGET', key, unpack(fields, i, math.min(i + CHUNK - 1, #fields)))) do
      all[#all + 1] = value
    end
  end
  return all
end

-- The parts of a record in CLAIM: delivery, nonce, attempt, priority (a string), worker, losses, notes.
local function parts(record)
  if not record then return 0, '', 0, '0', '', 0, '' end
  local notes = ''
  local delivery, nonce, attempt, priority, losses, worker =
    string.match(record, '^(%d+)|(%d*)|(%d+)|(%-?%d+)|(%d+)|(.*)$')
  if not delivery then
    delivery, nonce, attempt, priority, losses, notes, worker =
      string.match(record, '^(%d+)|(%d*)|(%d+)|(%-?%d+)|(%d+)(\n.*\n)|([^\n]*)$')
  end
  if not delivery then return 0, '', 0, '0', '', 0, '' end -- not ours
  return tonumber(delivery), nonce, tonumber(attempt), priority, worker, tonumber(losses), notes
end

-- The notes of a task with one more; the oldest go. They are lines, and a newline before the first.
local function add_note(notes, note)
  if note == '' then return notes end
  notes = (notes == '' and '\n' or notes) .. note .. '\n'
  local _, lines = string.gsub(notes, '\n', '')
  for _ = NOTES + 2, lines do notes = string.sub(notes, (string.find(notes, '\n', 2, true))) end
  return notes
end

-- The bytes of the header of a message that begins at `at` of `text`, and whether a byte follows its payload that is not
-- of it.
local function header_size(text, at)
  local size = struct.unpack('>I4', text, at)
  return size % 2147483648, size >= 2147483648
end

-- What the header of a message has of this name; nil if it has none, or can't be read.
local function header_field(message, name)
  local good, header = pcall(function()
    return cjson.decode(string.sub(message, 5, 4 + header_size(message, 1)))
  end)
  return good and type(header) == 'table' and header[name] or nil
end

-- Why what has this id and record is no task that anybody can hold; nil if it is one. An id is a number from 1 to
-- 2^53 - 1, as nobody writes it in two ways, and how often a task was claimed fits into 32 bits everywhere.
local function fault(id, delivery, attempt)
  if not string.find(id, '^[1-9]%d*$') then return 'its id is no number' end
  if tonumber(id) >= 9007199254740992 then return 'its id is larger than 2^53 - 1' end
  if delivery >= 2147483647 or attempt >= 2147483647 then return 'its number of deliveries or attempts is too large' end
end

-- The member of PRIOR for a task. Its place among equals is its id, so that the oldest comes first; `at` (ms) instead
-- puts it behind all that exist by then, because ids are reserved from the clock.
local function member(id, at)
  local place = at and string.format('%.0f', at * 2048) or id
  return string.rep('0', 16 - #place) .. place .. id
end

-- The score in PRIOR of a priority.
local function score_of(priority)
  return priority == '0' and '0' or tostring(-priority)
end

-- The place of the first task in PRIOR of a priority; nil if there is none.
local function first_place(priority)
  local score = score_of(priority)
  local first = redis.call('ZRANGEBYSCORE', PRIOR, score, score, 'LIMIT', 0, 1)[1]
  return first and tonumber(string.sub(first, 1, 16))
end

-- Whether a field of FAIR is of no use any more: who is behind the first has lost nothing, and so is as any other.
local function is_over(field, place)
  if string.sub(field, 1, 1) == '#' then return redis.call('HEXISTS', MSG, string.sub(field, 2)) == 0 end
  return tonumber(place) < (first_place(string.match(field, '^(%-?%d+):') or '0') or math.huge)
end

-- Makes a fair task ready where it is its tenant's turn: beside the first one of all, or behind his last, so that of
-- those who have tasks ready each gets one done before anybody gets the next, and who comes late has lost nothing. Where
-- none is ready, what was given before counts no more.
local function take_turn(id, priority, tenant, at)
  local first, field = first_place(priority), priority .. ':' .. tenant
  local last = first and redis.call('HGET', FAIR, field)
  local place = string.format('%016.0f', math.max(first or at * 2048, last and last + 1 or 0))
  redis.call('ZADD', PRIOR, score_of(priority), place .. id)
  if redis.call('HSET', FAIR, field, place) == 1 then -- so that those who are gone do not grow more than the others
    local some = redis.call('HRANDFIELD', FAIR, 2, 'WITHVALUES')
    for i = 1, #some, 2 do
      if is_over(some[i], some[i + 1]) then redis.call('HDEL', FAIR, some[i]) end
    end
  end
end

-- Makes tasks ready, in the order given. `place` is 'front' or 'back' of those of the same priority; but those whose
-- tenant is given take their turns.
local function make_ready(ids, priorities, place, at, tenants)
  local plain, ranked = {}, {}
  for i, id in ipairs(ids) do
    if tenants and tenants[i] then
      take_turn(id, priorities[i], tenants[i], at)
    elseif priorities[i] == '0' then
      plain[#plain + 1] = id
    else
      ranked[#ranked + 1] = -priorities[i]
      ranked[#ranked + 1] = member(id, place == 'back' and at or nil)
    end
  end
  if place == 'front' then -- LPUSH turns the order round
    local turned = {}
    for i = #plain, 1, -1 do turned[#turned + 1] = plain[i] end
    send('LPUSH', READY, turned)
  else
    send('RPUSH', READY, plain)
  end
  send('ZADD', PRIOR, ranked)
end

-- Takes a task out of the scheduled and the ready ones, and looks through these for it.
local function withdraw(id)
  if redis.call('ZREM', SCHEDULED, id) + redis.call('LREM', READY, 1, id) + redis.call('ZREM', PRIOR, member(id)) > 0 then
    return
  end
  for _, name in ipairs(redis.call('ZRANGE', PRIOR, 0, -1)) do
    if string.sub(name, 17) == id then redis.call('ZREM', PRIOR, name) end
  end
end

-- The id of the task that holds a key, of what ONCE has of it; nil if the key is free.
local function holder(entry, at)
  local id, rule = string.match(entry or '', '^(%d+)|(%w+)$')
  if not id then return nil end
  if tonumber(rule) then return tonumber(rule) > at and id or nil end
  if redis.call('HEXISTS', MSG, id) == 0 then return nil end
  if rule == 'b' then
    local _, _, attempt = parts(redis.call('HGET', CLAIM, id))
    if attempt > 0 then return nil end
  end
  return id
end

-- Counts the claims of a worker up or down.
local function count_held(worker, change)
  if change ~= 0 and redis.call('HINCRBY', HELD, worker, change) <= 0 then redis.call('HDEL', HELD, worker) end
end

-- Whether nothing is claimed. Then nobody is woken either. It is asked last: while there is work, NOTI has a token.
local function on_hold()
  return redis.call('HEXISTS', META, 'paused') == 1
end

-- Puts one token into NOTI.
local function wake()
  if redis.call('LINDEX', NOTI, 0) ~= '1' and not on_hold() then
    redis.call('DEL', NOTI)
    redis.call('LPUSH', NOTI, '1')
  end
end

-- Puts one token into NOTI if something is ready, and takes it away if nothing is. `sooner` says that the first
-- scheduled task has changed: then a sleeper has to look how long he may sleep.
local function signal(sooner)
  if redis.call('LLEN', READY) + redis.call('ZCARD', PRIOR) > 0 then return wake() end
  if redis.call('LINDEX', NOTI, 0) == '1' then redis.call('DEL', NOTI) end
  if sooner and redis.call('EXISTS', NOTI) == 0 and not on_hold() then redis.call('LPUSH', NOTI, 's') end
end

-- Milliseconds until the first scheduled task is due (0 if it is), -1 if there is none or the queue is paused.
local function until_due(at)
  local first = redis.call('ZRANGE', SCHEDULED, 0, 0, 'WITHSCORES')
  if not first[2] or on_hold() then return -1 end
  return math.max(0, first[2] - at)
end

-- Tells all who wait for answers of the queue, whose READY is given, that there is one. Who may not publish here has
-- listeners that poll.
local function tell_answer(ready)
  redis.pcall('PUBLISH', ready .. '_answers', '1')
end

-- Forgets the dead letters that are too many or too old, 1,000 at most; the bounds are those of META, else these.
local function trim_dead(max, age, at)
  local own = redis.call('HMGET', META, 'dead_most', 'dead_age')
  max, age = tonumber(own[1] or max), tonumber(own[2] or age)
  local old = redis.call('ZRANGEBYSCORE', DEAD, '-inf', at - age, 'LIMIT', 0, 1000)
  local surplus = math.min(redis.call('ZCARD', DEAD) - max, 1000)
  if surplus > #old then old = redis.call('ZRANGE', DEAD, 0, surplus - 1) end
  send('ZREM', DEAD, old)
  send('HDEL', DEADMSG, old)
end

-- How often a task was claimed in its present life.
local function this_life(delivery)
  return delivery % 1000000
end

-- Keeps a message as a dead letter. The caller removes it from where it was.
local function bury(id, message, delivery, attempt, reason, notes, at)
  redis.call('ZADD', DEAD, at, id)
  local head = delivery .. '|' .. attempt .. '|' .. #reason .. '|' .. #notes .. '|'
  redis.call('HSET', DEADMSG, id, head .. reason .. notes .. message)
end

-- Takes what is no task out of the way: it becomes a dead letter if its id is a number, else it is removed. Returns what
-- is told of it: 'dead' or 'gone'|why|id.
local function put_away(id, message, why, at)
  redis.call('ZREM', CLAIMED, id)
  redis.call('HDEL', CLAIM, id)
  redis.call('HDEL', MSG, id)
  local named = string.find(id, '^[1-9]%d*$')
  if named then bury(id, message, 0, 0, 'no task: ' .. why, '', at) end
  return (named and 'dead|' or 'gone|') .. why .. '|' .. string.sub(id, 1, 50)
end

-- The version of the small value that is kept under a name, the value, and when it is forgotten (ms; nil: never); nil if
-- there is none, or its time is over.
local function live_key(name, at)
  local record = redis.call('HGET', KEYVAL, name)
  local till = record and tonumber(redis.call('ZSCORE', KEYEND, name) or nil)
  if not record or (till and till <= at) then return nil end
  local version, value = string.match(record, '^(%d+)|(.*)$')
  return version, value, till
end

-- The next id, for a version, as a string.
local function next_version(at)
  local version = string.format('%.0f', math.max(tonumber(redis.call('GET', ID) or 0), at * 2048) + 1)
  redis.call('SET', ID, version)
  return version
end

local function drop_keys(names)
  send('HDEL', KEYVAL, names)
  send('ZREM', KEYNAME, names)
  send('ZREM', KEYEND, names)
end

-- Notes that a worker or a sweeper has called. A gap between two calls is an outage or a clock that jumped, and then
-- nothing is swept for a grace of one lease, so that every worker can renew first. The rule is that of grace.py, but that
-- here all who call are seen. Returns until when nothing is swept, ms, when the first outage within the grace began
-- (false: there was none), and whether the queue is paused.
local function contact(at, lease)
  local meta = redis.call('HMGET', META, 'contact', 'lease', 'grace_until', 'outage', 'paused')
  local last, grace, outage = tonumber(meta[1] or at), tonumber(meta[3] or 0), meta[4]
  local gap = at - last
  lease = lease or tonumber(meta[2] or 15000)
  if gap < -1000 then
    grace = at + lease
    redis.call('HINCRBY', META, 'jump', gap)
  elseif gap > lease / 2 and last >= grace then
    grace = at + lease
  elseif gap > lease / 2 then
    grace = grace + gap - math.floor(lease / 3)
    outage = outage or last
    redis.call('HSET', META, 'outage', outage)
  end
  redis.call('HSET', META, 'contact', at, 'grace_until', grace)
  return grace, outage, meta[5] and true or false
end
