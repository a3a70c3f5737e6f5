-- Stores an answer, and wakes who waits for it.
--
-- KEYS[1] -> READY
-- KEYS[2] -> ANSWER
-- ARGV[1] -> how long to keep it, ms
-- ARGV[2] -> the answer

redis.call('SET', ANSWER, ARGV[2], 'PX', ARGV[1])
tell_answer(READY)
