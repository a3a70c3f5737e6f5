-- Step 4 of the schema of the PostgreSQL broker.

-- Small values under names of a queue.
CREATE TABLE @.delayed_key (
    queue int NOT NULL,
    name text COLLATE "C" NOT NULL,
    version bigint NOT NULL,                -- made as ids are
    until timestamptz NOT NULL,             -- when it is forgotten; infinity: never
    value bytea NOT NULL,
    PRIMARY KEY (queue, name)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE INDEX delayed_key_until ON @.delayed_key (until) WHERE until < 'infinity';


-- Keep a value under a name, or remove what is there (a_value NULL); its version, or 0 if nothing was done.
--
-- wanted: the version that has to be there; 0: nothing may be; NULL: any. ttl: seconds; NULL: no end.
-- Whoever writes holds the row of the queue, as who reserves ids does: so versions are given in the order of the commits.
-- Who is refused has not waited for it.
CREATE FUNCTION @.delayed_put_key(
    a_queue text, a_name text, a_value bytea, ttl float8, wanted bigint, keep_version boolean
) RETURNS bigint LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    a_number int := (SELECT q.number FROM @.delayed_queue q WHERE q.name = a_queue);
    present bigint;
    fresh bigint;
BEGIN
    FOR turn IN 1 .. 2 LOOP
        SELECT k.version INTO present FROM @.delayed_key k
        WHERE k.queue = a_number AND k.name = a_name AND k.until > clock_timestamp();
        present := coalesce(present, 0);
        IF wanted <> present OR (a_value IS NULL AND present = 0) THEN
            RETURN 0;
        END IF;
        IF turn = 1 THEN
            IF a_value IS NULL OR (keep_version AND present > 0) THEN
                PERFORM FROM @.delayed_queue q WHERE q.number = a_number FOR NO KEY UPDATE;
            ELSE
                fresh := @.delayed_reserve(a_queue, 1);
                SELECT q.number INTO STRICT a_number FROM @.delayed_queue q WHERE q.name = a_queue;
            END IF;
        END IF;
    END LOOP;
    IF a_value IS NULL THEN
        DELETE FROM @.delayed_key k WHERE k.queue = a_number AND k.name = a_name;
        RETURN present;
    END IF;
    IF keep_version AND present > 0 THEN
        fresh := present;
    ELSIF fresh IS NULL THEN  -- it was there, and is gone
        fresh := @.delayed_reserve(a_queue, 1);
    END IF;
    INSERT INTO @.delayed_key AS k
    VALUES (a_number, a_name, fresh, coalesce(clock_timestamp() + ttl * interval '1 second', 'infinity'), a_value)
    ON CONFLICT (queue, name) DO UPDATE
    SET version = excluded.version, until = excluded.until, value = excluded.value;
    RETURN fresh;
END $body$;


-- Add to the number that is kept under a name; the sum. NULL: what is there is no number, or the sum is too large.
CREATE FUNCTION @.delayed_add_key(a_queue text, a_name text, delta bigint, ttl float8) RETURNS bigint LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    fresh bigint := @.delayed_reserve(a_queue, 1);
    a_number int := (SELECT q.number FROM @.delayed_queue q WHERE q.name = a_queue);
    old record;
    total bigint := delta;
    ends timestamptz := coalesce(clock_timestamp() + ttl * interval '1 second', 'infinity');
BEGIN
    SELECT k.value, k.until INTO old FROM @.delayed_key k
    WHERE k.queue = a_number AND k.name = a_name AND k.until > clock_timestamp();
    IF FOUND THEN
        -- encode(): what is no text at all could not be converted.
        IF encode(old.value, 'escape') !~ '^(0|-?[1-9][0-9]{0,15})$' THEN
            RETURN NULL;
        END IF;
        IF abs(encode(old.value, 'escape')::bigint) >= 9007199254740992 THEN
            RETURN NULL;
        END IF;
        total := total + encode(old.value, 'escape')::bigint;
        ends := old.until;
    END IF;
    IF abs(total) >= 9007199254740992 THEN
        RETURN NULL;
    END IF;
    INSERT INTO @.delayed_key AS k VALUES (a_number, a_name, fresh, ends, convert_to(total::text, 'UTF8'))
    ON CONFLICT (queue, name) DO UPDATE
    SET version = excluded.version, until = excluded.until, value = excluded.value;
    RETURN total;
END $body$;


-- Forget the values whose time is over, at most so many.
CREATE FUNCTION @.delayed_forget_keys(most int) RETURNS void LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    now timestamptz := clock_timestamp();
BEGIN
    PERFORM FROM @.delayed_key k WHERE k.until <= now AND k.until < 'infinity' LIMIT 1;
    IF FOUND THEN
        DELETE FROM @.delayed_key k WHERE k.ctid = ANY (ARRAY(
            SELECT o.ctid FROM @.delayed_key o WHERE o.until <= now AND o.until < 'infinity'
            ORDER BY o.until LIMIT most FOR UPDATE SKIP LOCKED
        ));
    END IF;
END $body$;


-- What settlements have noted of a task's attempts: oldest first, and so short that most stay in the row.
ALTER TABLE @.delayed_task ADD COLUMN notes bytea[] NOT NULL DEFAULT '{}';


-- A worker's turn: end claims, then take up to `room` tasks of the queues. Rows without an id answer the settlements: the
-- `header` has those of a queue that were accepted, as id/delivery/nonce with commas between. The other rows are claims.
--
-- ended_*: claims that are done. other_*: those that end otherwise, by `other_action`: retry, back, dead; each with what
-- is noted of its attempt, if anything. As in step 1, but for the notes, of which the last 20 are kept, and for the turns
-- of fair tasks; that function stays beside this one, for workers that run since before.
CREATE FUNCTION @.delayed_work(
    a_worker text,
    ended_queue text[], ended_id bigint[], ended_delivery int[], ended_nonce bigint[],
    other_queue text[], other_id bigint[], other_delivery int[], other_nonce bigint[],
    other_action text[], other_delay float8[], other_reason text[], other_note bytea[],
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
    last bigint;
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
            other_reason, other_note) AS o (name, id, delivery, nonce, action, delay, reason, note)
        JOIN @.delayed_queue q ON q.name = o.name
    LOOP
        UPDATE @.delayed_task t SET
            worker = '', nonce = 0, lease_end = '-infinity', reason = s.reason,
            state = CASE WHEN s.action = 'dead' THEN 3 WHEN s.delay > 0 THEN 0 ELSE 1 END,
            at = clock_timestamp() + s.delay * interval '1 second',
            attempt = t.attempt - CASE WHEN s.action = 'back' THEN 1 ELSE 0 END,
            place = CASE WHEN s.action = 'back' THEN t.place ELSE nextval('@.delayed_place') << 20 END,
            notes = CASE WHEN s.note = '' THEN t.notes ELSE t.notes[cardinality(t.notes) - 18:] || s.note END
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
            ), turns AS MATERIALIZED (SELECT tid, row_number() OVER (ORDER BY at, id) AS turn FROM due),
            moved AS (
                UPDATE @.delayed_task t SET state = 1, place = CASE
                    WHEN t.tenant IS NULL OR t.attempt > 0 THEN base + turn
                    ELSE @.delayed_turn(t.queue, t.priority, t.tenant, base + turn) END
                FROM turns WHERE t.ctid = tid RETURNING t.place, t.tenant
            )
            SELECT max(place) FILTER (WHERE tenant IS NOT NULL) INTO last FROM moved;
            PERFORM nextval('@.delayed_place') FROM generate_series(base >> 20, (last >> 20) - 1);
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


-- As delayed_work, with answers of some of the claims that are ended: each is stored if its claim held.
CREATE FUNCTION @.delayed_work_answered(
    a_worker text,
    ended_queue text[], ended_id bigint[], ended_delivery int[], ended_nonce bigint[],
    other_queue text[], other_id bigint[], other_delivery int[], other_nonce bigint[],
    other_action text[], other_delay float8[], other_reason text[], other_note bytea[],
    queues text[], a_seq bigint, a_nonce bigint, room int, lease float8,
    answer_queue text[], answer_id bigint[], answer_delivery int[], answer_nonce bigint[],
    answer_ttl float8[], answer_data bytea[]
) RETURNS TABLE (
    o_queue text, o_id bigint, o_delivery int, o_attempt int, o_priority int, o_place bigint,
    o_header bytea, o_payload bytea
) LANGUAGE plpgsql AS $body$
DECLARE
    done text[];
BEGIN
    FOR o_queue, o_id, o_delivery, o_attempt, o_priority, o_place, o_header, o_payload IN
        SELECT * FROM @.delayed_work(
            a_worker, ended_queue, ended_id, ended_delivery, ended_nonce, other_queue, other_id, other_delivery,
            other_nonce, other_action, other_delay, other_reason, other_note, queues, a_seq, a_nonce, room, lease
        )
    LOOP
        IF o_id IS NULL AND o_header IS NOT NULL THEN
            done := string_to_array(convert_from(o_header, 'UTF8'), ',');
            PERFORM @.delayed_put_answer(a.queue, a.id, a.ttl, a.data)
            FROM unnest(answer_queue, answer_id, answer_delivery, answer_nonce, answer_ttl, answer_data)
                AS a (queue, id, delivery, nonce, ttl, data)
            WHERE a.queue = o_queue AND format('%s/%s/%s', a.id, a.delivery, a.nonce) = ANY (done);
        END IF;
        RETURN NEXT;
    END LOOP;
END $body$;


-- Make dead letters ready, as if they had never been claimed; the ids of those that there were. A life has a million
-- deliveries, whose numbers are never lowered. As in step 3, but for the notes.
CREATE OR REPLACE FUNCTION @.delayed_revive(a_queue text, ids bigint[]) RETURNS TABLE (o_id bigint) LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    a_number int := (SELECT q.number FROM @.delayed_queue q WHERE q.name = a_queue);
    base bigint := nextval('@.delayed_place') << 20;
    a_turn bigint;
BEGIN
    FOR o_id, a_turn IN SELECT i.id, i.turn FROM unnest(ids) WITH ORDINALITY AS i (id, turn) LOOP
        UPDATE @.delayed_task t SET
            state = 1, at = clock_timestamp(), place = base + a_turn, attempt = 0, lost = 0, reason = '', notes = '{}',
            tenant = NULL,
            delivery = CASE WHEN t.delivery < 2000000000 THEN (t.delivery / 1000000 + 1) * 1000000 ELSE t.delivery END
        WHERE t.id = o_id AND t.queue = a_number AND t.state + 0 = 3;
        IF FOUND THEN
            DELETE FROM @.delayed_answer a WHERE a.id = o_id AND a.queue = a_number;
            RETURN NEXT;
        END IF;
    END LOOP;
    PERFORM @.delayed_ring(a_queue, false);
END $body$;


-- Return the tasks whose lease has ended, at most 10,000; the numbers of those that are ready again and that are dead,
-- and whether workers are given time to renew. Most sweeps find nothing, and write nothing. As in step 3, but for the
-- note of the attempt, and for the bounds of the dead letters, see delayed_trim.
CREATE OR REPLACE FUNCTION @.delayed_sweep(
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
                    state = CASE WHEN t.attempt >= t.max_deliveries THEN 3 ELSE 1 END,
                    place = CASE WHEN t.lost > 0 OR t.delivery % 1000000 >= t.max_deliveries
                        THEN nextval('@.delayed_place') << 20 ELSE t.place END,
                    reason = CASE WHEN t.attempt >= t.max_deliveries
                        THEN format('poison: delivered %s times, and its worker was lost again', t.delivery % 1000000)
                        ELSE '' END,
                    lost = t.lost + 1, at = now, lease_end = '-infinity', worker = '', nonce = 0,
                    notes = t.notes[cardinality(t.notes) - 18:] || convert_to(json_build_object(
                        'attempt', t.attempt, 'ended', extract(epoch FROM now), 'worker', t.worker,
                        'code', 10, 'text', 'its worker was lost'
                    )::text, 'UTF8')
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


-- Since when the dead letters of a queue may be kept: those that died before then are too many, or too old, and of those
-- that died right then some may be. NULL: all may. It passes over as many letters as may be kept.
CREATE FUNCTION @.delayed_keep_since(a_number int, most int, age float8) RETURNS timestamptz LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $body$
DECLARE
    since timestamptz;
    young timestamptz := clock_timestamp() - age * interval '1 second';
BEGIN
    SELECT d.at INTO since FROM @.delayed_task d WHERE d.queue = a_number AND d.state = 3
    ORDER BY d.at DESC OFFSET most LIMIT 1;
    IF EXISTS (SELECT FROM @.delayed_task d WHERE d.queue = a_number AND d.state = 3 AND d.at < young) THEN
        since := greatest(since, young);
    END IF;
    RETURN since;
END $body$;


-- Whether dead letters have to go. Of all the sweeps only one that has just noted itself looks, so one in a second; and
-- where more than `look` may be kept only some of these, so that a look passes over as many on the average.
CREATE FUNCTION @.delayed_surplus(a_queue text, dead_most int, dead_age float8, look int) RETURNS boolean LANGUAGE plpgsql
AS $body$
DECLARE
    q record;
BEGIN
    SELECT x.number, coalesce(x.dead_most, $2) AS most, coalesce(x.dead_age, $3) AS age INTO q
    FROM @.delayed_queue x WHERE x.name = a_queue AND x.swept >= now();
    RETURN FOUND AND random() * q.most < look AND @.delayed_keep_since(q.number, q.most, q.age) IS NOT NULL;
END $body$;


-- Remove dead letters beyond the bounds of their queue, the oldest first; how many, about n at most. It is no part of a sweep,
-- whose row of the queue would keep others from getting ids for so long.
CREATE FUNCTION @.delayed_trim(a_queue text, dead_most int, dead_age float8, n int) RETURNS int LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $body$
DECLARE
    q record;
    since timestamptz;
    removed int;
    more int;
BEGIN
    SELECT x.number, coalesce(x.dead_most, $2) AS most, coalesce(x.dead_age, $3) AS age INTO q
    FROM @.delayed_queue x WHERE x.name = a_queue;
    since := @.delayed_keep_since(q.number, q.most, q.age);
    DELETE FROM @.delayed_task t WHERE t.ctid = ANY (ARRAY(
        SELECT d.ctid FROM @.delayed_task d WHERE d.queue = q.number AND d.state = 3 AND d.at < since
        ORDER BY d.at LIMIT n FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS removed = ROW_COUNT;
    IF removed < n THEN  -- of those that died at the same time
        DELETE FROM @.delayed_task t WHERE t.ctid = ANY (ARRAY(
            SELECT d.ctid FROM @.delayed_task d WHERE d.queue = q.number AND d.state = 3
            ORDER BY d.at DESC OFFSET q.most LIMIT n
        )) AND t.state = 3;
        GET DIAGNOSTICS more = ROW_COUNT;
        removed := removed + more;
    END IF;
    RETURN removed;
END $body$;


-- Unique tasks -------------------------------------------------------------------------------------------------

-- The keys of unique tasks. One is held as long as `id` is a task that is scheduled, ready or running, and if `begun` only
-- until its first run; or, where there is one, until the time `until`.
CREATE TABLE @.delayed_once (
    queue int NOT NULL,
    key uuid NOT NULL,
    id bigint NOT NULL,
    begun boolean NOT NULL,
    until timestamptz,
    PRIMARY KEY (queue, key)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- When the keys that are not held were last looked for, and the last key that was looked at.
ALTER TABLE @.delayed_queue ADD COLUMN once_tidied timestamptz NOT NULL DEFAULT '-infinity', ADD COLUMN once_from uuid;


-- Whether a task holds its key.
CREATE FUNCTION @.delayed_holds(a_queue int, a_id bigint, a_begun boolean, a_until timestamptz)
RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
BEGIN
    IF a_until IS NOT NULL THEN
        RETURN a_until > clock_timestamp();
    END IF;
    RETURN EXISTS (
        SELECT FROM @.delayed_task t
        WHERE t.id = a_id AND t.queue = a_queue AND t.state + 0 < 3 AND NOT (a_begun AND t.attempt > 0)
    );
END $body$;


-- Store a message unless another task holds its key; the id of the one that holds it now. Who comes at the same time with
-- the same key waits for the row of the key, and so for the end of this transaction.
CREATE FUNCTION @.delayed_enqueue_once(
    a_session uuid, a_seq bigint, a_queue text, a_key uuid, a_begun boolean, a_period float8, a_replace boolean,
    a_id bigint, a_priority int, a_delay float8, a_most int, a_header bytea, a_payload bytea, a_tenant uuid
) RETURNS bigint LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    a_number int := (SELECT q.number FROM @.delayed_queue q WHERE q.name = a_queue);
    a_until timestamptz := clock_timestamp() + a_period * interval '1 second';
    fresh boolean;
    other record;
BEGIN
    IF a_number IS NULL THEN
        PERFORM @.delayed_reserve(a_queue, 0);
        SELECT q.number INTO STRICT a_number FROM @.delayed_queue q WHERE q.name = a_queue;
    END IF;
    LOOP
        INSERT INTO @.delayed_once VALUES (a_number, a_key, a_id, a_begun, a_until) ON CONFLICT DO NOTHING;
        fresh := FOUND;
        EXIT WHEN fresh;
        SELECT * INTO other FROM @.delayed_once o WHERE o.queue = a_number AND o.key = a_key FOR UPDATE;
        EXIT WHEN FOUND;  -- else it was forgotten just now
    END LOOP;
    -- Looked up under the lock: this may be the resend of what another connection has just committed.
    IF EXISTS (SELECT FROM @.delayed_producer p WHERE p.session = a_session AND p.seq >= a_seq) THEN
        IF fresh THEN
            DELETE FROM @.delayed_once o WHERE o.queue = a_number AND o.key = a_key;
        END IF;
        RETURN a_id;
    END IF;
    IF NOT fresh THEN
        IF @.delayed_holds(a_number, other.id, other.begun, other.until) THEN
            IF NOT a_replace THEN
                RETURN other.id;
            END IF;
            DELETE FROM @.delayed_task t WHERE t.id = other.id AND t.queue = a_number AND t.state + 0 < 2;
        END IF;
        UPDATE @.delayed_once o SET id = a_id, begun = a_begun, until = a_until
        WHERE o.queue = a_number AND o.key = a_key;
    END IF;
    IF a_tenant IS NULL THEN
        PERFORM @.delayed_enqueue(
            a_session, a_seq, a_queue, ARRAY[a_id], ARRAY[a_priority], ARRAY[a_delay], ARRAY[a_most], ARRAY[a_header],
            ARRAY[a_payload]
        );
    ELSE
        PERFORM @.delayed_enqueue_fair(
            a_session, a_seq, a_queue, ARRAY[a_id], ARRAY[a_priority], ARRAY[a_delay], ARRAY[a_most], ARRAY[a_header],
            ARRAY[a_payload], ARRAY[a_tenant]
        );
    END IF;
    -- So that keys which are over do not grow more than those that are held, two others are looked at for each that is
    -- new; but their rows stay locked as long as the transaction, and so not in one of somebody else's.
    IF a_session IS NOT NULL THEN
        PERFORM @.delayed_forget_once(a_number, a_key, 2);
    END IF;
    RETURN a_id;
END $body$;


-- Forget those of the next n keys that are not held; the last key, NULL if they were fewer.
CREATE FUNCTION @.delayed_forget_once(a_number int, a_key uuid, n int) RETURNS uuid LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    o record;
    seen int := 0;
    last uuid;
BEGIN
    FOR o IN
        SELECT x.key, x.id, x.begun, x.until FROM @.delayed_once x
        WHERE x.queue = a_number AND x.key > coalesce(a_key, '00000000-0000-0000-0000-000000000000')
        ORDER BY x.key LIMIT n FOR UPDATE SKIP LOCKED
    LOOP
        seen := seen + 1;
        last := o.key;
        IF NOT @.delayed_holds(a_number, o.id, o.begun, o.until) THEN
            DELETE FROM @.delayed_once x WHERE x.queue = a_number AND x.key = o.key;
        END IF;
    END LOOP;
    RETURN CASE WHEN seen = n THEN last END;
END $body$;


-- Forget keys that are not held, once a minute: some of them, and at the next call those that follow.
CREATE FUNCTION @.delayed_tidy_once(a_queue text) RETURNS void LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    q record;
    last uuid;
BEGIN
    SELECT x.number, x.once_tidied, x.once_from INTO q FROM @.delayed_queue x WHERE x.name = a_queue;
    IF q.once_tidied > clock_timestamp() - interval '1 minute' THEN
        RETURN;
    END IF;
    PERFORM FROM @.delayed_once o WHERE o.queue = q.number LIMIT 1;
    IF FOUND THEN
        last := @.delayed_forget_once(q.number, q.once_from, 5000);
        UPDATE @.delayed_queue x SET once_tidied = clock_timestamp(), once_from = last WHERE x.number = q.number;
    END IF;
END $body$;


-- Turns among tenants ------------------------------------------------------------------------------------------

-- Whose a task is that is fair. The first place of all, and the last of its tenant, are looked up here; those that were run
-- before are served in the order in which they come back. So that each is looked up in its own index, and not in that of all
-- ready tasks, each writes the priority in its own way.
ALTER TABLE @.delayed_task ADD COLUMN tenant uuid;
CREATE INDEX delayed_task_fair ON @.delayed_task (queue, (priority + 0), place)
    WHERE state = 1 AND tenant IS NOT NULL AND attempt = 0;
CREATE INDEX delayed_task_tenant ON @.delayed_task (queue, tenant, (priority + 1), place)
    WHERE state = 1 AND tenant IS NOT NULL AND attempt = 0;


-- The place of a fair task that becomes ready: the first one of a tenant who has none ready goes behind the first of all fair
-- ones, each further one a turn behind his last. So of those that have some ready each gets one done before anybody gets the
-- next, and who comes late has lost nothing. `base`: a place behind all others, where no fair one is ready. Two transactions
-- at once may give the same place, as they do not see each other's tasks.
CREATE FUNCTION @.delayed_turn(a_queue int, a_priority int, a_tenant uuid, base bigint) RETURNS bigint LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $body$
DECLARE
    first bigint;
    last bigint;
BEGIN
    SELECT t.place INTO first FROM @.delayed_task t
    WHERE t.queue = a_queue AND t.priority + 0 = a_priority
        AND t.state = 1 AND t.tenant IS NOT NULL AND t.attempt = 0
    ORDER BY t.place LIMIT 1;
    IF first IS NULL THEN
        RETURN base;
    END IF;
    SELECT t.place INTO last FROM @.delayed_task t
    WHERE t.queue = a_queue AND t.tenant = a_tenant AND t.priority + 1 = a_priority + 1
        AND t.state = 1 AND t.tenant IS NOT NULL AND t.attempt = 0
    ORDER BY t.place DESC LIMIT 1;
    RETURN greatest(first + 1, last + (1 << 20));
END $body$;


-- Store messages of which some are fair: those that have a tenant. Else as delayed_enqueue.
CREATE FUNCTION @.delayed_enqueue_fair(
    a_session uuid, a_seq bigint, a_queue text, ids bigint[], priorities int[], delays float8[],
    max_deliveries int[], headers bytea[], payloads bytea[], tenants uuid[]
) RETURNS void LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $body$
DECLARE
    a_number int;
    base bigint := nextval('@.delayed_place') << 20;
    last bigint := base;
    now timestamptz := clock_timestamp();
    a_place bigint;
    m record;
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
    FOR m IN
        SELECT * FROM unnest(ids, priorities, delays, max_deliveries, headers, payloads, tenants)
            WITH ORDINALITY AS x (id, priority, delay, most, header, payload, tenant, turn)
    LOOP
        a_place := base + m.turn;
        IF m.tenant IS NOT NULL AND m.delay <= 0 THEN
            a_place := @.delayed_turn(a_number, m.priority, m.tenant, a_place);
            last := greatest(last, a_place);
        END IF;
        INSERT INTO @.delayed_task (queue, id, place, at, max_deliveries, state, priority, header, payload, tenant)
        VALUES (a_number, m.id, a_place, now + m.delay * interval '1 second', m.most,
            CASE WHEN m.delay > 0 THEN 0 ELSE 1 END, m.priority, m.header, m.payload, m.tenant);
    END LOOP;
    -- What comes later, or again, is behind those.
    PERFORM nextval('@.delayed_place') FROM generate_series(base >> 20, (last >> 20) - 1);
    PERFORM @.delayed_ring(a_queue, a_session IS NULL);
END $body$;
