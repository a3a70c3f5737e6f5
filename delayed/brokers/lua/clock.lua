-- Tells the time.
--
-- KEYS[1] -> ID, which only says where
-- Returns the store's clock, ms.

return clock()
