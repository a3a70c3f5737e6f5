-- Step 2 of the tables of the SQLite broker: what is kept of tasks after their end.
CREATE TABLE delayed_answer (
    seat INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    id INTEGER NOT NULL,
    until INTEGER NOT NULL,              -- when it is forgotten
    data BLOB NOT NULL
);
CREATE UNIQUE INDEX delayed_answer_id ON delayed_answer (queue, id);
CREATE INDEX delayed_answer_until ON delayed_answer (until);
