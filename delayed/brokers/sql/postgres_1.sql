-- Step 1 of the schema of the PostgreSQL broker.
--
-- Everything that changes a task is one function, so that it is one round trip, one transaction, and has its plan kept
-- by the server even where a proxy forbids prepared statements. Durations are seconds, instants clock_timestamp():
-- now() would be as old as the transaction that a caller enqueues in.
--
-- A worker's plans are made when the table is empty, and there may be a million rows before they are made again. So no
-- plan is left a choice. Functions neither scan the table nor sort what an index has in order; they join it with nothing,
-- for either may come first; who looks by state names it as a number, because only then a partial index is used; and who
-- looks by id writes `state + 0`, because only then none is.

-- One row: the version of the schema, and a name of this store by which a connection to another is told.
CREATE TABLE @.delayed_meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version int NOT NULL,
    store uuid NOT NULL DEFAULT gen_random_uuid()
);

-- Rows are never deleted.
CREATE TABLE @.delayed_queue (
    number int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    counter bigint NOT NULL DEFAULT 0,      -- the last id given out
    swept timestamptz,                      -- when it was last swept; NULL: never
    grace timestamptz NOT NULL DEFAULT '-infinity',  -- until then a sweep returns nothing
    tidied timestamptz NOT NULL DEFAULT '-infinity',  -- when what is old was last removed
    paused boolean NOT NULL DEFAULT false   -- nothing is claimed
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- state: 0 scheduled --due--> 1 ready --claim--> 2 running --> gone, 0 (retry), 1 (given back, lost) or 3 dead.
-- place: the order within a priority. A claim leaves it alone, so what is given back takes its old place, in front of
--     whatever came later; a retry and a second loss get a new place at the end.
-- at: 0 when it is due; 3 when it died.
-- A row lives through one UPDATE (the claim) and its DELETE, so two dead versions a task have to be vacuumed soon and
-- without pauses; and as neither could be on the page of the old version (both change indexes), no room is kept there.
CREATE TABLE @.delayed_task (
    queue int NOT NULL,
    id bigint NOT NULL,
    place bigint NOT NULL,
    nonce bigint NOT NULL DEFAULT 0,        -- the unsigned nonce as a signed number
    at timestamptz NOT NULL,
    lease_end timestamptz NOT NULL DEFAULT '-infinity',
    delivery int NOT NULL DEFAULT 0,
    attempt int NOT NULL DEFAULT 0,
    lost int NOT NULL DEFAULT 0,            -- times that its lease ended
    max_deliveries int NOT NULL,
    state smallint NOT NULL,
    priority smallint NOT NULL,
    worker text COLLATE "C" NOT NULL DEFAULT '',
    reason text NOT NULL DEFAULT '',
    header bytea NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (id, queue)
) WITH (
    fillfactor = 100,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0.2, autovacuum_analyze_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 2000,
    toast.autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE @.delayed_task ALTER COLUMN payload SET STORAGE EXTERNAL;  -- the codec has compressed it, if anything does

-- Each row is in the first index and in exactly one of the others, so the rows of one state cost nothing to the others.
CREATE INDEX delayed_task_scheduled ON @.delayed_task (queue, at) WHERE state = 0;
CREATE INDEX delayed_task_ready ON @.delayed_task (queue, priority DESC, place) WHERE state = 1;
CREATE INDEX delayed_task_running ON @.delayed_task (queue, worker, lease_end) WHERE state = 2;
CREATE INDEX delayed_task_dead ON @.delayed_task (queue, at) WHERE state = 3;

-- A number a batch; the places of its tasks follow from it.
CREATE SEQUENCE @.delayed_place;

-- The last enqueue of each producer session, and the last claim of each worker: what makes a resend harmless.
CREATE TABLE @.delayed_producer (session uuid PRIMARY KEY, seq bigint NOT NULL, seen timestamptz NOT NULL)
    WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE TABLE @.delayed_claimer (worker text COLLATE "C" PRIMARY KEY, seq bigint NOT NULL, seen timestamptz NOT NULL)
    WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Until when somebody may sleep for a queue: before then an enqueue notifies. A hint, so it need not be durable.
CREATE UNLOGGED TABLE @.delayed_sleeper (queue text COLLATE "C" PRIMARY KEY, until timestamptz NOT NULL)
    WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- What workers say of themselves; for people to look at.
CREATE TABLE @.delayed_announcement (
    queue text COLLATE "C" NOT NULL,
    worker text COLLATE "C" NOT NULL,
    info text NOT NULL,
    until timestamptz NOT NULL,
    PRIMARY KEY (queue, worker)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- What people ask of workers; gone once it is fetched.
CREATE TABLE @.delayed_order (
    worker text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    what text NOT NULL,
    until timestamptz NOT NULL,
    PRIMARY KEY (worker, id)
);


-- Wake who sleeps for a queue; where nobody does, or it is paused, nothing is sent unless `always`: a NOTIFY takes a lock
-- that all commits of the server share.
CREATE FUNCTION @.delayed_ring(a_queue text, always boolean) RETURNS void LANGUAGE plpgsql AS $body$
BEGIN
    IF always OR EXISTS (
        SELECT FROM @.delayed_sleeper s WHERE s.queue = a_queue AND s.until > clock_timestamp()
            AND NOT EXISTS (SELECT FROM @.delayed_queue q WHERE q.name = a_queue AND q.paused)
    ) THEN
        PERFORM pg_notify('@channel', left(a_queue, 1000));
    END IF;
END $body$;


-- When a queue has something to claim, as far as is known now: -infinity if it has, NULL if nothing waits or it is paused.
-- A function, because the planner might read all rows of all queues at once to answer for several.
CREATE FUNCTION @.delayed_next(a_queue text) RETURNS timestamptz LANGUAGE plpgsql AS $body$
DECLARE
    a_number int := (SELECT q.number FROM @.delayed_queue q WHERE q.name = a_queue AND NOT q.paused);
    first timestamptz;
BEGIN
    PERFORM FROM @.delayed_task t WHERE t.queue = a_number AND t.state = 1 LIMIT 1;
    IF FOUND THEN
        RETURN '-infinity';
    END IF;
    SELECT t.at INTO first FROM @.delayed_task t WHERE t.queue = a_number AND t.state = 0 ORDER BY t.at LIMIT 1;
    RETURN first;
END $body$;


-- The first of n new ids. The row stays locked until the transaction ends, so it is called outside of those of others.
CREATE FUNCTION @.delayed_reserve(a_queue text, n int) RETURNS bigint LANGUAGE plpgsql
SET lock_timeout = '5s' AS $body$
DECLARE
    last bigint;
BEGIN
    LOOP
        UPDATE @.delayed_queue q
        SET counter = greatest(q.counter, (extract(epoch FROM clock_timestamp()) * 1000)::bigint << 11) + n
        WHERE q.name = a_queue RETURNING q.counter INTO last;
        IF FOUND THEN
            RETURN last - n + 1;
        END IF;
        INSERT INTO @.delayed_queue (name) VALUES (a_queue) ON CONFLICT DO NOTHING;
    END LOOP;
END $body$;


-- Store the messages. With a session: only if it has not sent this number, or a later one, before. Without one it is a
-- part of a transaction of somebody else's, whose commit nobody sees but by the notification.
CREATE FUNCTION @.delayed_enqueue(
    a_session uuid, a_seq bigint, a_queue text, ids bigint[], priorities int[], delays float8[],
    max_deliveries int[], headers bytea[], payloads bytea[]
) RETURNS void LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $body$
DECLARE
    a_number int;
    base bigint := nextval('@.delayed_place') << 20;
    now timestamptz := clock_timestamp();
BEGIN
    IF a_session IS NOT NULL THEN
        INSERT INTO @.delayed_producer AS p VALUES (a_session, a_seq, now)
        ON CONFLICT (session) DO UPDATE SET seq = excluded.seq, seen = excluded.seen WHERE p.seq < excluded.seq;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    SELECT q.number INTO a_number FROM @.delayed_queue q WHERE q.name = a_queue;
    IF NOT FOUND THEN
        PERFORM @.delayed_reserve(a_queue, 0);
        SELECT q.number INTO STRICT a_number FROM @.delayed_queue q WHERE q.name = a_queue;
    END IF;
    INSERT INTO @.delayed_task (queue, id, place, at, max_deliveries, state, priority, header, payload)
    SELECT a_number, m.id, base + m.turn, now + m.delay * interval '1 second', m.most,
        CASE WHEN m.delay > 0 THEN 0 ELSE 1 END, m.priority, m.header, m.payload
    FROM unnest(ids, priorities, delays, max_deliveries, headers, payloads)
        WITH ORDINALITY AS m (id, priority, delay, most, header, payload, turn);
    PERFORM @.delayed_ring(a_queue, a_session IS NULL);
END $body$;


-- A worker's turn: end claims, then take up to `room` tasks of the queues. Rows without an id answer the settlements: the
-- `header` has those of a queue that were accepted, as id/delivery/nonce with commas between. The other rows are claims.
--
-- ended_*: claims that are done. other_*: those that end otherwise, by `other_action`: retry, back, dead.
CREATE FUNCTION @.delayed_work(
    a_worker text,
    ended_queue text[], ended_id bigint[], ended_delivery int[], ended_nonce bigint[],
    other_queue text[], other_id bigint[], other_delivery int[], other_nonce bigint[],
    other_action text[], other_delay float8[], other_reason text[],
    queues text[], a_seq bigint, a_nonce bigint, room int, lease float8
) RETURNS TABLE (
    o_queue text, o_id bigint, o_delivery int, o_attempt int, o_priority int, o_place bigint,
    o_header bytea, o_payload bytea
) LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $body$
#variable_conflict use_column
DECLARE
    now timestamptz := clock_timestamp();
    a_queue text;
    a_number int;
    base bigint;
    rung text[] := '{}';
    tids tid[];
    sent boolean;
    n int;
    s record;
BEGIN
    FOR a_queue, a_number IN
        SELECT q.name, q.number FROM @.delayed_queue q WHERE q.name = ANY (ended_queue)
    LOOP
        -- Locked in a statement of its own: if a renewal was there first, only a later one sees the row as it is now.
        tids := ARRAY(
            SELECT (
                SELECT d.ctid FROM @.delayed_task d
                WHERE d.id = e.id AND d.queue = a_number
                    AND d.state + 0 = 2 AND d.delivery = e.delivery AND d.nonce = e.nonce
                FOR UPDATE
            )
            FROM unnest(ended_queue, ended_id, ended_delivery, ended_nonce) AS e (name, id, delivery, nonce)
            WHERE e.name = a_queue
        );
        WITH gone AS (
            DELETE FROM @.delayed_task t WHERE t.ctid = ANY (tids) RETURNING t.id, t.delivery, t.nonce
        )
        SELECT convert_to(string_agg(format('%s/%s/%s', g.id, g.delivery, g.nonce), ','), 'UTF8')
        INTO o_header FROM gone g;
        o_queue := a_queue;
        RETURN NEXT;
    END LOOP;
    FOR s IN
        SELECT o.*, q.number FROM unnest(other_queue, other_id, other_delivery, other_nonce, other_action, other_delay,
            other_reason) AS o (name, id, delivery, nonce, action, delay, reason)
        JOIN @.delayed_queue q ON q.name = o.name
    LOOP
        UPDATE @.delayed_task t SET
            worker = '', nonce = 0, lease_end = '-infinity', reason = s.reason,
            state = CASE WHEN s.action = 'dead' THEN 3 WHEN s.delay > 0 THEN 0 ELSE 1 END,
            at = clock_timestamp() + s.delay * interval '1 second',
            attempt = t.attempt - CASE WHEN s.action = 'back' THEN 1 ELSE 0 END,
            place = CASE WHEN s.action = 'back' THEN t.place ELSE nextval('@.delayed_place') << 20 END
        WHERE t.id = s.id AND t.queue = s.number
            AND t.state + 0 = 2 AND t.delivery = s.delivery AND t.nonce = s.nonce;
        CONTINUE WHEN NOT FOUND;
        o_queue := s.name;
        o_header := convert_to(format('%s/%s/%s', s.id, s.delivery, s.nonce), 'UTF8');
        RETURN NEXT;
        IF s.action <> 'dead' AND s.name <> ALL (rung) THEN
            rung := rung || s.name;
            PERFORM @.delayed_ring(s.name, false);
        END IF;
    END LOOP;

    IF room <= 0 THEN
        RETURN;
    END IF;
    -- A look first: what finds nothing writes nothing. But it may have been this very claim, sent before and committed
    -- just now, that left nothing.
    sent := EXISTS (SELECT FROM @.delayed_claimer c WHERE c.worker = a_worker AND c.seq >= a_seq);
    IF NOT sent THEN
        PERFORM FROM unnest(queues) AS x (name) WHERE @.delayed_next(x.name) <= now;
        IF NOT FOUND THEN
            sent := EXISTS (SELECT FROM @.delayed_claimer c WHERE c.worker = a_worker AND c.seq >= a_seq);
            IF NOT sent THEN
                RETURN;
            END IF;
        END IF;
    END IF;
    IF NOT sent THEN
        INSERT INTO @.delayed_claimer AS c VALUES (a_worker, a_seq, now)
        ON CONFLICT (worker) DO UPDATE SET seq = excluded.seq, seen = excluded.seen WHERE c.seq < excluded.seq;
        sent := NOT FOUND;
    END IF;
    IF sent THEN  -- it has been sent before: what that claim got and still holds
        FOREACH a_queue IN ARRAY queues LOOP
            SELECT q.number INTO a_number FROM @.delayed_queue q WHERE q.name = a_queue;
            RETURN QUERY
            SELECT a_queue, t.id, t.delivery, t.attempt, t.priority::int, t.place, t.header, t.payload
            FROM @.delayed_task t
            WHERE t.queue = a_number AND t.state = 2 AND t.worker = a_worker AND t.nonce = a_nonce;
        END LOOP;
        RETURN;
    END IF;
    FOREACH a_queue IN ARRAY queues LOOP
        SELECT q.number INTO a_number FROM @.delayed_queue q WHERE q.name = a_queue AND NOT q.paused;
        CONTINUE WHEN NOT FOUND;
        IF EXISTS (SELECT FROM @.delayed_task t WHERE t.queue = a_number AND t.state = 0 AND t.at <= now) THEN
            base := nextval('@.delayed_place') << 20;
            WITH due AS MATERIALIZED (
                SELECT t.ctid AS tid, t.at, t.id FROM @.delayed_task t
                WHERE t.queue = a_number AND t.state = 0 AND t.at <= now
                ORDER BY t.at LIMIT 1000 FOR UPDATE SKIP LOCKED
            ), turns AS MATERIALIZED (SELECT tid, row_number() OVER (ORDER BY at, id) AS turn FROM due)
            UPDATE @.delayed_task t SET state = 1, place = base + turn FROM turns WHERE t.ctid = tid;
        END IF;
        RETURN QUERY
        UPDATE @.delayed_task t SET
            state = 2, worker = a_worker, nonce = a_nonce, lease_end = clock_timestamp() + lease * interval '1 second',
            delivery = t.delivery + 1, attempt = t.attempt + 1
        WHERE t.ctid = ANY (ARRAY(
            SELECT r.ctid FROM @.delayed_task r WHERE r.queue = a_number AND r.state = 1
            ORDER BY r.priority DESC, r.place LIMIT room FOR UPDATE SKIP LOCKED
        ))
        RETURNING a_queue, t.id, t.delivery, t.attempt, t.priority::int, t.place, t.header, t.payload;
        GET DIAGNOSTICS n = ROW_COUNT;
        room := room - n;
        EXIT WHEN room <= 0;
    END LOOP;
END $body$;


-- Renew these claims, and return the tokens of all that the worker holds in the queues. Waits for nobody: a claim whose
-- row is locked is being ended.
CREATE FUNCTION @.delayed_renew(
    a_worker text, queues text[], names text[], ids bigint[], deliveries int[], nonces bigint[], lease float8
) RETURNS TABLE (o_queue text, o_id bigint, o_delivery int, o_nonce bigint) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $body$
DECLARE
    a_queue text;
    a_number int;
BEGIN
    IF cardinality(ids) > 0 THEN
        UPDATE @.delayed_task t SET lease_end = clock_timestamp() + lease * interval '1 second'
        WHERE t.ctid = ANY (ARRAY(
            SELECT (
                SELECT h.ctid FROM @.delayed_task h
                WHERE h.id = r.id AND h.queue = (SELECT q.number FROM @.delayed_queue q WHERE q.name = r.name)
                    AND h.state + 0 = 2 AND h.delivery = r.delivery AND h.nonce = r.nonce AND h.worker = a_worker
                FOR UPDATE SKIP LOCKED
            )
            FROM unnest(names, ids, deliveries, nonces) AS r (name, id, delivery, nonce)
        ));
    END IF;
    FOR a_queue, a_number IN
        SELECT q.name, q.number FROM @.delayed_queue q WHERE q.name = ANY (queues || names)
    LOOP
        RETURN QUERY
        SELECT a_queue, t.id, t.delivery, t.nonce FROM @.delayed_task t
        WHERE t.queue = a_number AND t.state = 2 AND t.worker = a_worker;
    END LOOP;
END $body$;


-- All that the worker holds in the queues.
CREATE FUNCTION @.delayed_held(a_worker text, queues text[]) RETURNS TABLE (
    o_queue text, o_id bigint, o_delivery int, o_nonce bigint, o_attempt int, o_header bytea, o_payload bytea
) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    a_queue text;
    a_number int;
BEGIN
    FOR a_queue, a_number IN
        SELECT q.name, q.number FROM @.delayed_queue q WHERE q.name = ANY (queues)
    LOOP
        RETURN QUERY
        SELECT a_queue, t.id, t.delivery, t.nonce, t.attempt, t.header, t.payload FROM @.delayed_task t
        WHERE t.queue = a_number AND t.state = 2 AND t.worker = a_worker ORDER BY t.priority DESC, t.place;
    END LOOP;
END $body$;


-- Note that somebody sleeps for these queues, for so many seconds, and listen; return the seconds until one has something to claim,
-- as far as is known now: 0 if one has, infinity if nothing waits.
CREATE FUNCTION @.delayed_sleep(queues text[], seconds float8) RETURNS float8 LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $body$
DECLARE
    now timestamptz := clock_timestamp();
    awake timestamptz := now + seconds * interval '1 second';
    first timestamptz;
BEGIN
    IF seconds > 0 THEN
        EXECUTE format('LISTEN %I', '@channel');
        INSERT INTO @.delayed_sleeper AS s SELECT DISTINCT x.name, awake FROM unnest(queues) AS x (name) ORDER BY 1
        ON CONFLICT (queue) DO UPDATE SET until = excluded.until
        WHERE s.until < excluded.until - interval '500 milliseconds';
    END IF;
    SELECT min(@.delayed_next(x.name)) INTO first FROM unnest(queues) AS x (name);
    RETURN CASE
        WHEN first IS NULL THEN 'infinity'
        WHEN first <= clock_timestamp() THEN 0
        ELSE extract(epoch FROM first - clock_timestamp())
    END;
END $body$;


-- Pause a queue, or resume it and wake who sleeps for it.
CREATE FUNCTION @.delayed_pause(a_queue text, a_paused boolean) RETURNS void LANGUAGE plpgsql
SET lock_timeout = '5s' AS $body$
BEGIN
    INSERT INTO @.delayed_queue AS q (name, paused) VALUES (a_queue, a_paused)
    ON CONFLICT (name) DO UPDATE SET paused = excluded.paused;
    PERFORM @.delayed_ring(a_queue, false);
END $body$;


-- Return the tasks whose lease has ended, at most 10,000; the numbers of those that are ready again and that are dead,
-- and whether workers are given time to renew. Most sweeps find nothing, and write nothing.
CREATE FUNCTION @.delayed_sweep(
    a_queue text, lease float8, dead_most int, dead_age float8, unseen_age float8,
    OUT returned int, OUT dead int, OUT waits boolean
) LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $body$
#variable_conflict use_column
DECLARE
    now timestamptz := clock_timestamp();
    leased interval := lease * interval '1 second';
    q record;
    holder text := '';
    n_ready int;
    n_dead int;
BEGIN
    returned := 0; dead := 0; waits := false;
    INSERT INTO @.delayed_queue (name) SELECT a_queue
    WHERE NOT EXISTS (SELECT FROM @.delayed_queue x WHERE x.name = a_queue) ON CONFLICT DO NOTHING;
    SELECT * INTO q FROM @.delayed_queue x WHERE x.name = a_queue;
    IF now - q.swept < least(interval '1 second', leased / 8) AND q.tidied > now - interval '1 minute' THEN
        IF now < q.grace THEN
            waits := true;
            RETURN;
        END IF;
        LOOP  -- from worker to worker, so that the claims whose lease has not ended are never looked at
            holder := (
                SELECT t.worker FROM @.delayed_task t
                WHERE t.queue = q.number AND t.state = 2 AND t.worker > holder ORDER BY t.worker LIMIT 1
            );
            IF holder IS NULL THEN
                RETURN;
            END IF;
            EXIT WHEN EXISTS (
                SELECT FROM @.delayed_task t
                WHERE t.queue = q.number AND t.state = 2 AND t.worker = holder AND t.lease_end < now
            );
        END LOOP;
        holder := '';
    END IF;

    SELECT * INTO q FROM @.delayed_queue x WHERE x.name = a_queue FOR NO KEY UPDATE;
    now := clock_timestamp();
    -- A gap that follows a gap is the habit of a slow sweeper, which else would never return anything.
    IF now - q.swept > leased / 2 AND q.swept >= q.grace THEN
        q.grace := now + leased;
    END IF;
    UPDATE @.delayed_queue x SET swept = now, grace = q.grace WHERE x.number = q.number;
    IF now < q.grace THEN
        waits := true;
    ELSE
        LOOP
            holder := (
                SELECT t.worker FROM @.delayed_task t
                WHERE t.queue = q.number AND t.state = 2 AND t.worker > holder ORDER BY t.worker LIMIT 1
            );
            EXIT WHEN holder IS NULL OR returned + dead >= 10000;
            WITH lost AS (
                UPDATE @.delayed_task t SET
                    state = CASE WHEN t.delivery >= t.max_deliveries THEN 3 ELSE 1 END,
                    place = CASE WHEN t.lost > 0 OR t.delivery >= t.max_deliveries
                        THEN nextval('@.delayed_place') << 20 ELSE t.place END,
                    reason = CASE WHEN t.delivery >= t.max_deliveries
                        THEN format('poison: delivered %s times, and its worker was lost again', t.delivery)
                        ELSE '' END,
                    lost = t.lost + 1, at = now, lease_end = '-infinity', worker = '', nonce = 0
                WHERE t.ctid = ANY (ARRAY(
                    SELECT l.ctid FROM @.delayed_task l
                    WHERE l.queue = q.number AND l.state = 2 AND l.worker = holder AND l.lease_end < now
                    ORDER BY l.lease_end LIMIT 10000 - returned - dead FOR UPDATE SKIP LOCKED
                ))
                RETURNING state
            )
            SELECT count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 3)
            INTO n_ready, n_dead FROM lost;
            returned := returned + n_ready;
            dead := dead + n_dead;
        END LOOP;
        IF returned > 0 THEN
            PERFORM @.delayed_ring(a_queue, false);
        END IF;
    END IF;

    IF q.tidied < now - interval '1 minute' THEN
        UPDATE @.delayed_queue x SET tidied = now WHERE x.number = q.number;
        DELETE FROM @.delayed_task t WHERE t.ctid = ANY (ARRAY(
            SELECT d.ctid FROM @.delayed_task d
            WHERE d.queue = q.number AND d.state = 3 AND d.at < now - dead_age * interval '1 second'
            ORDER BY d.at LIMIT 10000 FOR UPDATE SKIP LOCKED
        ));
        DELETE FROM @.delayed_task t WHERE t.ctid = ANY (ARRAY(
            SELECT d.ctid FROM @.delayed_task d WHERE d.queue = q.number AND d.state = 3
            ORDER BY d.at DESC OFFSET dead_most LIMIT 10000
        )) AND t.state = 3;
        -- Sweepers of other queues do the same: nobody waits for a row.
        DELETE FROM @.delayed_producer p WHERE p.ctid = ANY (ARRAY(
            SELECT o.ctid FROM @.delayed_producer o WHERE o.seen < now - unseen_age * interval '1 second'
            FOR UPDATE SKIP LOCKED
        ));
        DELETE FROM @.delayed_claimer c WHERE c.ctid = ANY (ARRAY(
            SELECT o.ctid FROM @.delayed_claimer o WHERE o.seen < now - unseen_age * interval '1 second'
            FOR UPDATE SKIP LOCKED
        ));
        DELETE FROM @.delayed_sleeper s WHERE s.ctid = ANY (ARRAY(
            SELECT o.ctid FROM @.delayed_sleeper o WHERE o.until < now - unseen_age * interval '1 second'
            FOR UPDATE SKIP LOCKED
        ));
        DELETE FROM @.delayed_announcement a WHERE a.ctid = ANY (ARRAY(
            SELECT o.ctid FROM @.delayed_announcement o WHERE o.until < now FOR UPDATE SKIP LOCKED
        ));
        DELETE FROM @.delayed_order r WHERE r.ctid = ANY (ARRAY(
            SELECT o.ctid FROM @.delayed_order o WHERE o.until < now FOR UPDATE SKIP LOCKED
        ));
    END IF;
END $body$;
