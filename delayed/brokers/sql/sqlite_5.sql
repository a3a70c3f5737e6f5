-- Step 5 of the tables of the SQLite broker: when the first outage within the time of grace began; NULL: there was none.
ALTER TABLE delayed_queue ADD COLUMN outage INTEGER;

-- The oldest version that may use the tables as they are.
ALTER TABLE delayed_meta ADD COLUMN least INTEGER NOT NULL DEFAULT 5;
