-- What enqueue.lua does, sooner, of messages that are all plain: no delay, priority 0, not fair.
--
-- KEYS[1] -> PROD
-- KEYS[2] -> PRODT
-- KEYS[3] -> MSG
-- KEYS[4] -> READY
-- KEYS[5] -> NOTI
-- KEYS[6] -> META
-- ARGV[1] -> producer session
-- ARGV[2] -> sequence number in it
-- ARGV[3] -> 1: it is time to note that the session was seen; 0: that was done not long ago
-- ARGV[4 ...] -> id, message of each
-- Returns 1 if they are stored now, 0 if they were before (a resend).

local call, session, seq, id = redis.call, ARGV[1], ARGV[2], ARGV[4]
local last = call('HGET', PROD, session)
if last and tonumber(last) >= tonumber(seq) then return 0 end
call('HSET', PROD, session, seq)
if not last or ARGV[3] == '1' then
  local time = call('TIME')
  call('ZADD', PRODT, time[1] .. '000', session)
end

if #ARGV == 5 then
  call('HSET', MSG, id, ARGV[5])
  call('RPUSH', READY, id)
else
  local stop, ids = #ARGV, {}
  for i = 4, stop, CHUNK do
    call('HSET', MSG, unpack(ARGV, i, math.min(i + CHUNK - 1, stop)))
  end
  for i = 4, stop, 2 do ids[i / 2 - 1] = ARGV[i] end
  for i = 1, #ids, CHUNK do
    call('RPUSH', READY, unpack(ids, i, math.min(i + CHUNK - 1, #ids)))
  end
end

if call('LINDEX', NOTI, 0) ~= '1' and call('HEXISTS', META, 'paused') == 0 then
  call('DEL', NOTI)
  call('LPUSH', NOTI, '1')
end
return 1
