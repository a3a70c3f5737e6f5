-- Removes one message that is not running. Looks through the ready ones: for people, not for programs.
--
-- KEYS[1] -> READY
-- KEYS[2] -> PRIOR
-- KEYS[3] -> NOTI
-- KEYS[4] -> SCHEDULED
-- KEYS[5] -> CLAIMED
-- KEYS[6] -> MSG
-- KEYS[7] -> CLAIM
-- KEYS[8] -> DEAD
-- KEYS[9] -> DEADMSG
-- KEYS[10] -> META
-- KEYS[11] -> ANSWER
-- ARGV[1] -> id
-- ARGV[2] -> whether it is removed if it is dead: 1 or 0
-- ARGV[3] -> how long to keep the answer, ms; 0: there is none
-- ARGV[4] -> the answer
-- Returns 1 if it was removed, 0 if there is none or it is running.

local id = ARGV[1]
if redis.call('ZSCORE', CLAIMED, id) then return 0 end
if ARGV[2] == '0' and redis.call('HEXISTS', DEADMSG, id) == 1 then return 0 end
local removed = redis.call('ZREM', DEAD, id) + redis.call('HDEL', DEADMSG, id) + redis.call('HDEL', MSG, id)
if removed == 0 then return 0 end
redis.call('HDEL', CLAIM, id)
withdraw(id)
signal()
if ARGV[3] ~= '0' then
  redis.call('SET', ANSWER, ARGV[4], 'PX', ARGV[3])
  tell_answer(READY)
end
return 1
