-- Settles claims, makes what is due ready, and claims. Its first write is one that Redis accepts when it is full, and
-- then it accepts the others too: a full Redis goes on draining.
--
-- KEYS[1] -> READY
-- KEYS[2] -> PRIOR
-- KEYS[3] -> NOTI
-- KEYS[4] -> SCHEDULED
-- KEYS[5] -> CLAIMED
-- KEYS[6] -> MSG
-- KEYS[7] -> CLAIM
-- KEYS[8] -> LAST
-- KEYS[9] -> HELD
-- KEYS[10] -> DEAD
-- KEYS[11] -> DEADMSG
-- KEYS[12] -> META
-- KEYS[13] -> FAIR
-- KEYS[14 ...] -> of the answers
-- ARGV[1] -> worker
-- ARGV[2] -> sequence number of its claim
-- ARGV[3] -> nonce of its claim
-- ARGV[4] -> how many tasks to claim at most, fewer if they are large; 0 only settles
-- ARGV[5] -> lease, ms
-- ARGV[6] -> dead letters to keep, unless META says
-- ARGV[7] -> how long to keep them, ms, unless META says
-- ARGV[8] -> how many answers are stored, if there are settlements
-- ARGV[9 ...] -> of each answer, in the order of their keys: which settlement it belongs to, from 1; how long to keep it,
--                ms; and itself
-- ARGV[...] -> the settlements. Those that are done, in groups of one token: 'delivery|nonce|', 'd', 'id,id,...'.
--                Of each other: 'delivery|nonce|', 'r' (retry), 'b' (back) or 'x' (dead) .. its note, which may be
--                empty .. newline .. delay in ms, or for 'x' the reason; and its id
-- Returns {'1' or '0' for each settlement in that order, in one string; ms until the next scheduled task or -1; and of
--          the claims: ids, deliveries, attempts, lengths of the messages, the messages, each in one string (that of
--          the deliveries, and that of the attempts, may be empty if all are 1); and if something was there that is no
--          task, what put_away() tells of each}.

redis.call('ZREM', CLAIMED, '')
local worker, seq, nonce = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local limit, lease = tonumber(ARGV[4]), tonumber(ARGV[5])
local now = clock()
local _, _, is_paused = contact(now)
local gained = 0 -- claims of this worker, more or fewer than before
local sooner = false -- whether the first scheduled task is one of these

-- Settle: compare each token, sort by what is to be done, do it in batches.
local verdicts = {}
if #ARGV > 7 then
  local answers = tonumber(ARGV[8])
  local first_group, named, ends, n = 9 + 3 * answers, {}, {}, 0
  for i = first_group, #ARGV, 3 do
    for id in string.gmatch(ARGV[i + 2], '%d+') do
      n = n + 1
      named[n] = id
    end
    ends[i] = n
  end
  local records = fetch(CLAIM, named)
  local suffix = '|' .. worker
  local ended, gone, kept, due, seen = {}, {}, {}, {}, {}
  local again, again_priorities, front, front_priorities = {}, {}, {}, {}
  local buried = false
  local group, token, action, plain = first_group - 3, '', '', nil
  for i = 1, n do
    while i > (ends[group] or 0) do
      group = group + 3
      token, action = ARGV[group], ARGV[group + 1]
      -- Of tasks claimed for the first time, of priority 0: nearly all; texts compare fast.
      plain = action == 'd' and token .. '1|0|0' .. suffix
    end
    local id, record = named[i], records[i]
    if record and record == plain and not seen[id] then
      seen[id] = true
      verdicts[i] = '1'
      ended[#ended + 1] = id
      gone[#gone + 1] = id
      gained = gained - 1
    elseif record and not seen[id] and string.sub(record, 1, #token) == token and string.sub(record, -1) ~= '|' then
      seen[id] = true
      verdicts[i] = '1'
      ended[#ended + 1] = id
      if string.sub(record, -#suffix) == suffix then
        gained = gained - 1
      else -- settled in the name of another, for example by who found the journal of a dead one
        local _, _, _, _, owner = parts(record)
        count_held(owner, -1)
      end
      if action == 'd' then
        gone[#gone + 1] = id
      else
        local delivery, _, attempt, priority, _, losses, notes = parts(record)
        local kind, note, detail = string.match(action, '^(.)([^\n]*)\n(.*)$')
        notes = add_note(notes, note)
        if kind == 'x' then
          bury(id, redis.call('HGET', MSG, id) or '\0\0\0\0', delivery, attempt, detail, notes, now)
          buried = true
          gone[#gone + 1] = id
        else
          if kind == 'b' then attempt = attempt - 1 end
          kept[#kept + 1] = id
          kept[#kept + 1] = delivery .. '||' .. attempt .. '|' .. priority .. '|' .. losses .. notes .. '|'
          if detail ~= '0' then
            due[#due + 1] = now + detail
            due[#due + 1] = id
          elseif kind == 'b' then
            front[#front + 1], front_priorities[#front + 1] = id, priority
          else
            again[#again + 1], again_priorities[#again + 1] = id, priority
          end
        end
      end
    else
      verdicts[i] = '0'
    end
  end
  send('ZREM', CLAIMED, ended)
  send('HDEL', CLAIM, gone)
  send('HDEL', MSG, gone)
  send('HSET', CLAIM, kept)
  send('ZADD', SCHEDULED, due)
  local first = #due > 0 and redis.call('ZRANGE', SCHEDULED, 0, 0)[1]
  for i = 2, #due, 2 do sooner = sooner or due[i] == first end
  make_ready(again, again_priorities, 'back', now)
  make_ready(front, front_priorities, 'front', now)
  if buried then trim_dead(tonumber(ARGV[6]), tonumber(ARGV[7]), now) end
  local answered = false
  for i = 1, answers do
    local at = 6 + 3 * i
    if verdicts[tonumber(ARGV[at])] == '1' then
      redis.call('SET', KEYS[13 + i], ARGV[at + 2], 'PX', ARGV[at + 1])
      answered = true
    end
  end
  if answered then tell_answer(READY) end
end

-- What is due becomes ready, 100 at a time, so that no call is long.
local arrived = redis.call('ZRANGEBYSCORE', SCHEDULED, '-inf', now, 'LIMIT', 0, 100)
if #arrived > 0 then
  redis.call('ZREM', SCHEDULED, unpack(arrived))
  local priorities = {}
  for i, record in ipairs(fetch(CLAIM, arrived)) do
    local _, _, _, priority = parts(record)
    priorities[i] = priority
  end
  local tenants
  if redis.call('EXISTS', FAIR) == 1 then
    local fields = {}
    for i, id in ipairs(arrived) do fields[i] = '#' .. id end
    tenants = fetch(FAIR, fields)
    redis.call('HDEL', FAIR, unpack(fields))
  end
  make_ready(arrived, priorities, 'back', now, tenants)
end

local ids, messages = {}, {}
local deliveries, attempts -- of all, if one is not claimed for the first time
local odd
if limit > 0 then
  local last_seq, last_nonce, last_ids
  local last = redis.call('HGET', LAST, worker)
  if last then last_seq, last_nonce, last_ids = string.match(last, '^(%d+)|%d+|(%d*)|(.*)$') end
  last_seq = tonumber(last_seq or -1)
  local leases, lease_end = {}, string.format('%.0f', now + lease) -- numbers are slow to turn into text
  if last_seq == seq then
    -- The answer was lost: what that claim got and still holds, for a full lease again.
    local named = {}
    for id in string.gmatch(last_ids, '%d+') do named[#named + 1] = id end
    local records, stored = fetch(CLAIM, named), fetch(MSG, named)
    for i, id in ipairs(named) do
      local delivery, holder_nonce, attempt, _, holder = parts(records[i])
      if stored[i] and holder == worker and holder_nonce == last_nonce then
        deliveries, attempts = deliveries or {}, attempts or {}
        ids[#ids + 1], deliveries[#ids + 1], attempts[#ids + 1], messages[#ids + 1] = id, delivery, attempt, stored[i]
        leases[#leases + 1] = lease_end
        leases[#leases + 1] = id
      end
    end
  elseif last_seq < seq then -- a smaller one is a request that was overtaken on its way: nobody waits for it
    local ranked = redis.call('ZCARD', PRIOR) > 0
    local function pop(most)
      local popped = {}
      local function take(names)
        send('ZREM', PRIOR, names)
        for _, name in ipairs(names) do popped[#popped + 1] = string.sub(name, 17) end
      end
      if ranked then
        take(redis.call('ZRANGEBYSCORE', PRIOR, '-inf', '(0', 'LIMIT', 0, most))
        local left = most - #popped
        local fair = left > 0 and redis.call('ZRANGEBYSCORE', PRIOR, 0, 0, 'LIMIT', 0, left) or {}
        local plain = #fair > 0 and redis.call('LLEN', READY) or 0
        if plain > 0 then -- half of each, and the odd one to either in turn
          local half = left / 2
          if half % 1 > 0 then half = half - 0.5 + redis.call('HINCRBY', META, 'turn', 1) % 2 end
          for i = #fair, math.max(half, left - plain) + 1, -1 do fair[i] = nil end
        end
        take(fair)
      end
      if #popped < most then
        for _, id in ipairs(redis.call('LPOP', READY, most - #popped) or {}) do popped[#popped + 1] = id end
      end
      if ranked and #popped < most then take(redis.call('ZRANGE', PRIOR, 0, most - #popped - 1)) end
      return popped
    end

    -- Slice by slice, each twice as long as the one before, because how large the messages are is known only then.
    local claims, first_time = {}, '1|' .. nonce .. '|1|0|0|' .. worker
    local n, seen, bytes, left, slice = 0, {}, 0, is_paused and 0 or limit, 4
    while left > 0 and bytes < ROOM do
      local asked = math.min(slice, left)
      local popped = pop(asked)
      if #popped == 0 then break end
      left, slice = #popped < asked and 0 or left - asked, slice * 2
      local records, stored = fetch(CLAIM, popped), fetch(MSG, popped)
      for i = 1, #popped do
        local id, record, message = popped[i], records[i], stored[i]
        if message and not seen[id] then -- else its message was removed by hand
          local delivery, _, attempt, priority, holder, losses, notes = 0, '', 0, '0', '', 0, ''
          if record then delivery, _, attempt, priority, holder, losses, notes = parts(record) end
          local why = fault(id, delivery, attempt)
          if why then
            odd = odd or {}
            odd[#odd + 1] = put_away(id, message, why, now)
          elseif holder == '' then -- else it stands in the queue and is held: whoever holds it settles it
            n = n + 1
            bytes = bytes + #message
            seen[id] = true
            ids[n], messages[n] = id, message
            claims[2 * n - 1] = id
            if record then
              if not deliveries then -- the first one here that is not as most are
                deliveries, attempts = {}, {}
                for k = 1, n - 1 do deliveries[k], attempts[k] = '1', '1' end
              end
              deliveries[n], attempts[n] = delivery + 1, attempt + 1
              claims[2 * n] = (delivery + 1) .. '|' .. nonce .. '|' .. (attempt + 1) .. '|' .. priority
                .. '|' .. losses .. notes .. '|' .. worker
            else
              claims[2 * n] = first_time
              if deliveries then deliveries[n], attempts[n] = '1', '1' end
            end
            leases[2 * n - 1] = lease_end
            leases[2 * n] = id
          end
        end
      end
    end
    if n > 0 then put_many('HSET', 'HDEL', CLAIM, claims) end
    gained = gained + n
    local answer = string.format('%.0f', seq) .. '|' .. now .. '|' .. nonce .. '|' .. table.concat(ids, ',')
    redis.call('HSET', LAST, worker, answer)
  end
  if #leases > 0 then put_many('ZADD', 'ZREM', CLAIMED, leases) end
end

count_held(worker, gained)
signal(sooner)
local sizes, last, text = {}, nil, nil
for i = 1, #messages do
  local size = #messages[i]
  if size ~= last then last, text = size, tostring(size) end -- which many share
  sizes[i] = text
end
return {
  table.concat(verdicts), until_due(now), table.concat(ids, ' '),
  deliveries and table.concat(deliveries, ' ') or '', attempts and table.concat(attempts, ' ') or '',
  table.concat(sizes, ' '), table.concat(messages), odd
}
