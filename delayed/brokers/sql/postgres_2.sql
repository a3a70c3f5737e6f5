-- Step 2 of the schema of the PostgreSQL broker: what is kept of tasks after their end, and who waits for it.

CREATE TABLE @.delayed_answer (
    queue int NOT NULL,
    id bigint NOT NULL,
    until timestamptz NOT NULL,             -- when it is forgotten
    data bytea NOT NULL,
    PRIMARY KEY (id, queue)
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 2000,
    toast.autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE @.delayed_answer ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX delayed_answer_until ON @.delayed_answer (until);

-- Until when somebody may wait for answers of a queue: before then one notifies. A hint, so it need not be durable.
CREATE UNLOGGED TABLE @.delayed_listener (queue text COLLATE "C" PRIMARY KEY, until timestamptz NOT NULL)
    WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);


-- Store an answer in the place of what is there, and wake who waits for it.
CREATE FUNCTION @.delayed_put_answer(a_queue text, a_id bigint, ttl float8, a_data bytea) RETURNS void LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    a_number int := (SELECT q.number FROM @.delayed_queue q WHERE q.name = a_queue);
BEGIN
    IF a_number IS NULL THEN
        PERFORM @.delayed_reserve(a_queue, 0);
        SELECT q.number INTO STRICT a_number FROM @.delayed_queue q WHERE q.name = a_queue;
    END IF;
    INSERT INTO @.delayed_answer VALUES (a_number, a_id, clock_timestamp() + ttl * interval '1 second', a_data)
    ON CONFLICT (id, queue) DO UPDATE SET until = excluded.until, data = excluded.data;
    IF EXISTS (SELECT FROM @.delayed_listener l WHERE l.queue = a_queue AND l.until > clock_timestamp()) THEN
        PERFORM pg_notify('@answers', left(a_queue, 1000));
    END IF;
END $body$;


-- As delayed_work, with answers of some of the claims that are ended: each is stored if its claim held.
CREATE FUNCTION @.delayed_work_answered(
    a_worker text,
    ended_queue text[], ended_id bigint[], ended_delivery int[], ended_nonce bigint[],
    other_queue text[], other_id bigint[], other_delivery int[], other_nonce bigint[],
    other_action text[], other_delay float8[], other_reason text[],
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
            other_nonce, other_action, other_delay, other_reason, queues, a_seq, a_nonce, room, lease
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


-- Note that somebody waits for answers of a queue, for so many seconds, and listen.
CREATE FUNCTION @.delayed_listen(a_queue text, seconds float8) RETURNS void LANGUAGE plpgsql
SET lock_timeout = '5s' AS $body$
BEGIN
    EXECUTE format('LISTEN %I', '@answers');
    INSERT INTO @.delayed_listener AS l VALUES (a_queue, clock_timestamp() + seconds * interval '1 second')
    ON CONFLICT (queue) DO UPDATE SET until = excluded.until
    WHERE l.until < excluded.until - interval '500 milliseconds';
END $body$;


-- Forget the answers whose time is over, at most 10,000.
CREATE FUNCTION @.delayed_forget() RETURNS void LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    now timestamptz := clock_timestamp();
BEGIN
    PERFORM FROM @.delayed_answer a WHERE a.until <= now LIMIT 1;
    IF FOUND THEN
        DELETE FROM @.delayed_answer a WHERE a.ctid = ANY (ARRAY(
            SELECT o.ctid FROM @.delayed_answer o WHERE o.until <= now
            ORDER BY o.until LIMIT 10000 FOR UPDATE SKIP LOCKED
        ));
    END IF;
END $body$;
