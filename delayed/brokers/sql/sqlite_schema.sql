-- The tables of the SQLite broker. They carry a prefix because they may live in a file of the user's.
-- Times (`at`, `seen`, `swept`, `grace`, `until`) are milliseconds of the file's own clock, see delayed_meta.

-- One row: the version of these tables, and the clock of the file. Its time is `anchor` + the host's boot-time clock
-- (which no one can set, and which counts suspension) as long as the host's boot id is `boot`; the first to open the
-- file after a boot anchors it anew, never before `seen`.
CREATE TABLE delayed_meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    boot TEXT NOT NULL,
    anchor INTEGER NOT NULL,
    seen INTEGER NOT NULL
);

-- Rows are never deleted, so a process may remember the number of a queue for as long as the file is the same.
CREATE TABLE delayed_queue (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    used INTEGER NOT NULL DEFAULT 0,     -- 1 once it has had a task
    counter INTEGER NOT NULL DEFAULT 0,  -- the last id given out
    tail INTEGER NOT NULL DEFAULT 0,     -- the last place given out
    swept INTEGER,                       -- when it was last swept; NULL: never
    grace INTEGER NOT NULL DEFAULT 0,    -- until then a sweep returns nothing
    paused INTEGER NOT NULL DEFAULT 0    -- 1: nothing is claimed
);

-- state: 0 scheduled --due--> 1 ready --claim--> 2 running --> gone, 0 (retry), 1 (given back, lost) or 3 dead.
-- place: the order within a priority. A claim leaves it alone, so what is given back takes its old place, in front of
--     whatever came later; a retry and a second loss get a new place at the end.
-- at: 0 when it is due · 1 nothing · 2 when the lease ends · 3 when it died.
CREATE TABLE delayed_task (
    seat INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    id INTEGER NOT NULL,
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    place INTEGER NOT NULL,
    at INTEGER NOT NULL,
    worker TEXT NOT NULL DEFAULT '',
    delivery INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,     -- times that its lease ended
    nonce INTEGER NOT NULL DEFAULT 0,    -- the unsigned nonce as a signed number
    max_deliveries INTEGER NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    header BLOB NOT NULL,
    payload BLOB NOT NULL
);

-- Each row is in the first index and in exactly one of the others, so the rows of one state cost nothing to the others.
CREATE UNIQUE INDEX delayed_task_id ON delayed_task (queue, id);
CREATE INDEX delayed_task_scheduled ON delayed_task (queue, at) WHERE state = 0;
CREATE INDEX delayed_task_ready ON delayed_task (queue, priority DESC, place) WHERE state = 1;
CREATE INDEX delayed_task_running ON delayed_task (queue, worker, at) WHERE state = 2;
CREATE INDEX delayed_task_dead ON delayed_task (queue, at) WHERE state = 3;

-- The last enqueue of each producer session, and the last claim of each worker: what makes a resend harmless.
CREATE TABLE delayed_producer (session TEXT PRIMARY KEY, seq INTEGER NOT NULL, seen INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE delayed_claimer (worker TEXT PRIMARY KEY, seq INTEGER NOT NULL, seen INTEGER NOT NULL) WITHOUT ROWID;

-- What workers say of themselves; for people to look at.
CREATE TABLE delayed_announcement (
    queue INTEGER NOT NULL,
    worker TEXT NOT NULL,
    info TEXT NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (queue, worker)
) WITHOUT ROWID;

-- What people ask of workers; gone once it is fetched.
CREATE TABLE delayed_order (
    worker TEXT NOT NULL,
    id TEXT NOT NULL,
    what TEXT NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (worker, id)
) WITHOUT ROWID;
