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

-- The keys of unique tasks. One is held as long as `id` is a task that is scheduled, ready or running, and if `begun`
-- only until its first run; or, where there is one, until the time `until`.
CREATE TABLE delayed_once (
    queue INTEGER NOT NULL,
    key TEXT NOT NULL,
    id INTEGER NOT NULL,
    begun INTEGER NOT NULL,
    until INTEGER,
    PRIMARY KEY (queue, key)
) WITHOUT ROWID;
ALTER TABLE delayed_queue ADD COLUMN once_from TEXT NOT NULL DEFAULT '';  -- the last key that a sweep has looked at

-- Whose a task is that is fair. The first place of all, and the last of its tenant, are looked up here; those that were
-- run before are served in the order in which they come back.
ALTER TABLE delayed_task ADD COLUMN tenant TEXT;
CREATE INDEX delayed_task_fair ON delayed_task (queue, priority, place)
    WHERE state = 1 AND tenant IS NOT NULL AND attempt = 0;
CREATE INDEX delayed_task_tenant ON delayed_task (queue, tenant, priority, place)
    WHERE state = 1 AND tenant IS NOT NULL AND attempt = 0;
