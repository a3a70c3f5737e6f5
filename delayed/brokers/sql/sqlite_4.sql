-- Step 4 of the tables of the SQLite broker.

-- Small values under names of a queue.
CREATE TABLE delayed_key (
    seat INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,            -- made as ids are
    until INTEGER,                       -- when it is forgotten; NULL: never
    value BLOB NOT NULL
);
CREATE UNIQUE INDEX delayed_key_name ON delayed_key (queue, name);
CREATE INDEX delayed_key_until ON delayed_key (until) WHERE until IS NOT NULL;

-- What settlements have noted of a task's attempts, oldest first, one a line.
ALTER TABLE delayed_task ADD COLUMN notes BLOB NOT NULL DEFAULT x'';
