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
