-- KEYS[1] -> SCHEDULED
-- KEYS[2] -> META
-- Returns the milliseconds until the first scheduled task is due, -1 if there is none or the queue is paused.

return until_due(clock())
