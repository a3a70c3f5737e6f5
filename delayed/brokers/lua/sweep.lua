-- Returns the tasks whose lease has ended, and repairs the queue. Safe from many sweepers at once. Begins like work.lua
-- with a write that a full Redis accepts.
--
-- KEYS[1] -> CLAIMED
-- KEYS[2] -> CLAIM
-- KEYS[3] -> MSG
-- KEYS[4] -> READY
-- KEYS[5] -> PRIOR
-- KEYS[6] -> NOTI
-- KEYS[7] -> META
-- KEYS[8] -> HELD
-- KEYS[9] -> LAST
-- KEYS[10] -> PROD
-- KEYS[11] -> PRODT
-- KEYS[12] -> DEAD
-- KEYS[13] -> DEADMSG
-- KEYS[14] -> WORKERS
-- KEYS[15] -> WORKINFO
-- KEYS[16] -> KEYVAL
-- KEYS[17] -> KEYNAME
-- KEYS[18] -> KEYEND
-- KEYS[19] -> ONCE
-- KEYS[20] -> FAIR
-- ARGV[1] -> lease, ms
-- ARGV[2] -> how many tasks to return at most
-- ARGV[3] -> dead letters to keep, unless META says
-- ARGV[4] -> how long to keep them, ms, unless META says
-- ARGV[5] -> how long to remember producers and workers that are not seen, ms
-- ARGV[6] -> deliveries after which a task is dead, if its header does not say
-- Returns {how many were returned, how many are dead now, 1 if this was a time of grace, 1 if any is claimed}.

redis.call('ZREM', CLAIMED, '')
local lease, most, max_dead, dead_age, memory = ARGV[1] + 0, ARGV[2], ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0
local now = clock()
local grace_until, outage = contact(now, lease)
redis.call('HSET', META, 'lease', lease)

-- Only claims whose lease has ended before then are lost: at the end of a grace with an outage within it, those that were
-- not renewed since; then another grace begins.
local before = now
if outage and now >= grace_until then
  before = math.min(now, outage)
  redis.call('HDEL', META, 'outage')
  redis.call('HSET', META, 'grace_until', now + lease)
end

-- The clock went back: the leases would last as much longer as it jumped.
local jump = tonumber(redis.call('HGET', META, 'jump') or 0)
if jump < 0 then
  local all, leases = redis.call('ZRANGE', CLAIMED, 0, -1, 'WITHSCORES'), {}
  for i = 1, #all, 2 do
    local till = tonumber(all[i + 1])
    leases[i], leases[i + 1] = math.min(till, math.max(till + jump, now + lease)), all[i]
  end
  send('ZADD', CLAIMED, leases)
  redis.call('HDEL', META, 'jump')
end

local returned, dead = 0, 0
if now >= grace_until then
  local expired = redis.call('ZRANGEBYSCORE', CLAIMED, '-inf', '(' .. before, 'LIMIT', 0, most)
  local records = fetch(CLAIM, expired)
  local gone, kept, owners = {}, {}, {}
  local front, front_priorities, back, back_priorities = {}, {}, {}, {}
  for i, id in ipairs(expired) do
    local delivery, _, attempt, priority, holder, losses, notes = parts(records[i])
    local message = redis.call('HGET', MSG, id) -- one at a time: together they may be large
    if holder ~= '' then
      owners[holder] = (owners[holder] or 0) + 1
      local note = {attempt = attempt, ended = now / 1000, worker = holder, code = 10, text = 'its worker was lost'}
      notes = add_note(notes, cjson.encode(note))
    end
    if not message then
      gone[#gone + 1] = id
    else
      local allowed = tonumber(header_field(message, 'm')) or tonumber(ARGV[6])
      if attempt >= allowed then
        local reason = 'poison: delivered ' .. this_life(delivery) .. ' times, and its worker was lost again'
        bury(id, message, delivery, attempt, reason, notes, now)
        gone[#gone + 1] = id
        dead = dead + 1
      else
        kept[#kept + 1] = id
        kept[#kept + 1] = delivery .. '||' .. attempt .. '|' .. priority .. '|' .. (losses + 1) .. notes .. '|'
        if losses == 0 then
          front[#front + 1], front_priorities[#front + 1] = id, priority
        else
          back[#back + 1], back_priorities[#back + 1] = id, priority
        end
        returned = returned + 1
      end
    end
  end
  send('ZREM', CLAIMED, expired)
  send('HDEL', CLAIM, gone)
  send('HDEL', MSG, gone)
  send('HSET', CLAIM, kept)
  make_ready(back, back_priorities, 'back', now)
  make_ready(front, front_priorities, 'front', now)
  for owner, count in pairs(owners) do count_held(owner, -count) end
end
signal()

-- Tidy up, about once a second whatever the number of sweepers, and a bounded part of it each time.
local tidied = tonumber(redis.call('HGET', META, 'tidied') or 0)
if math.abs(now - tidied) >= 1000 then
  redis.call('HSET', META, 'tidied', now)
  trim_dead(max_dead, dead_age, now)

  local silent = redis.call('ZRANGEBYSCORE', PRODT, '-inf', now - memory, 'LIMIT', 0, 1000)
  send('ZREM', PRODT, silent)
  send('HDEL', PROD, silent)

  local left = redis.call('ZRANGEBYSCORE', WORKERS, '-inf', now, 'LIMIT', 0, 1000)
  send('ZREM', WORKERS, left)
  send('HDEL', WORKINFO, left)

  drop_keys(redis.call('ZRANGEBYSCORE', KEYEND, '-inf', now, 'LIMIT', 0, 1000))

  -- Walks through a hash, a page per sweep, and drops the fields that `idle(field, value)` is true for.
  local function walk(name, key, idle)
    local page = redis.call('HSCAN', key, redis.call('HGET', META, name) or '0', 'COUNT', 100)
    local drop = {}
    for i = 1, #page[2], 2 do
      if idle(page[2][i], page[2][i + 1]) then drop[#drop + 1] = page[2][i] end
    end
    send('HDEL', key, drop)
    if page[1] == '0' then redis.call('HDEL', META, name) else redis.call('HSET', META, name, page[1]) end
  end
  walk('at_last', LAST, function(worker, answer) -- a worker that lives claims every few seconds
    local seen = tonumber(string.match(answer, '^%d+|(%d+)|') or 0)
    return seen < now - memory and redis.call('HEXISTS', HELD, worker) == 0
  end)
  walk('at_fair', FAIR, is_over)
  walk('at_once', ONCE, function(_, entry) return not holder(entry, now) end)
  walk('at_claim', CLAIM, function(id)
    return redis.call('HEXISTS', MSG, id) == 0 and not redis.call('ZSCORE', CLAIMED, id)
  end)
end
return {returned, dead, now < grace_until and 1 or 0, redis.call('EXISTS', CLAIMED)}
