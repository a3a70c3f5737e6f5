-- KEYS[1] -> SCHEDULED
-- Returns the milliseconds until the first scheduled task is due, -1 if there is none.

return until_due(clock())
