-- Step 3 of the tables of the SQLite broker: the bounds of a queue's dead letters; NULL: those of every queue.
ALTER TABLE delayed_queue ADD COLUMN dead_most INTEGER;
ALTER TABLE delayed_queue ADD COLUMN dead_age INTEGER;  -- ms
