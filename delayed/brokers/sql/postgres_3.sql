-- Step 3 of the schema of the PostgreSQL broker: dead letters come back, or go, and each queue has its own bounds for them.

-- NULL: as the sweeper says.
ALTER TABLE @.delayed_queue ADD COLUMN dead_most int, ADD COLUMN dead_age float8;  -- seconds


-- Set the bounds of a queue's dead letters, for the next sweep.
CREATE FUNCTION @.delayed_bound(a_queue text, most int, age float8) RETURNS void LANGUAGE plpgsql
SET lock_timeout = '5s' AS $body$
BEGIN
    INSERT INTO @.delayed_queue AS q (name, dead_most, dead_age) VALUES (a_queue, most, age)
    ON CONFLICT (name) DO UPDATE SET dead_most = most, dead_age = age, tidied = '-infinity'
    WHERE (q.dead_most, q.dead_age) IS DISTINCT FROM (most, age);
END $body$;


-- Make dead letters ready, as if they had never been claimed; the ids of those that there were. A life has a million
-- deliveries, whose numbers are never lowered.
CREATE FUNCTION @.delayed_revive(a_queue text, ids bigint[]) RETURNS TABLE (o_id bigint) LANGUAGE plpgsql
SET lock_timeout = '5s' SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $body$
DECLARE
    a_number int := (SELECT q.number FROM @.delayed_queue q WHERE q.name = a_queue);
    base bigint := nextval('@.delayed_place') << 20;
    a_turn bigint;
BEGIN
    FOR o_id, a_turn IN SELECT i.id, i.turn FROM unnest(ids) WITH ORDINALITY AS i (id, turn) LOOP
        UPDATE @.delayed_task t SET
            state = 1, at = clock_timestamp(), place = base + a_turn, attempt = 0, lost = 0, reason = '',
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
-- and whether workers are given time to renew. Most sweeps find nothing, and write nothing. As in step 1, but for the
-- bounds of the dead letters, which the queue may have of its own, and for the deliveries, which count in each life anew.
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
                    state = CASE WHEN t.delivery % 1000000 >= t.max_deliveries THEN 3 ELSE 1 END,
                    place = CASE WHEN t.lost > 0 OR t.delivery % 1000000 >= t.max_deliveries
                        THEN nextval('@.delayed_place') << 20 ELSE t.place END,
                    reason = CASE WHEN t.delivery % 1000000 >= t.max_deliveries
                        THEN format('poison: delivered %s times, and its worker was lost again', t.delivery % 1000000)
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
            WHERE d.queue = q.number AND d.state = 3 AND d.at < now - coalesce(q.dead_age, dead_age) * interval '1 second'
            ORDER BY d.at LIMIT 10000 FOR UPDATE SKIP LOCKED
        ));
        DELETE FROM @.delayed_task t WHERE t.ctid = ANY (ARRAY(
            SELECT d.ctid FROM @.delayed_task d WHERE d.queue = q.number AND d.state = 3
            ORDER BY d.at DESC OFFSET coalesce(q.dead_most, dead_most) LIMIT 10000
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
