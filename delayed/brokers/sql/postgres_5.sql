-- Step 5 of the schema of the PostgreSQL broker.

-- When the first outage within the time of grace began; NULL: there was none.
ALTER TABLE @.delayed_queue ADD COLUMN outage timestamptz;

-- The oldest version that may use the schema as it is. A step after which that is another one changes default and row.
ALTER TABLE @.delayed_meta ADD COLUMN least int NOT NULL DEFAULT 5;


-- Return the tasks whose lease has ended, at most 10,000; the numbers of those that are ready again and that are dead,
-- and whether workers are given time to renew. Most sweeps find nothing, and write nothing. As in step 4, but for
-- outages within the grace of another: the rule is that of grace.py.
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
    before timestamptz;
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
    IF now - q.swept > leased / 2 THEN
        IF q.swept >= q.grace THEN
            q.grace := now + leased;
        ELSE
            q.grace := q.grace + (now - q.swept) - leased / 3;
            q.outage := coalesce(q.outage, q.swept);
        END IF;
    END IF;
    waits := now < q.grace;
    IF NOT waits THEN
        before := least(q.outage, now);
        IF q.outage IS NOT NULL THEN
            q.grace := now + leased;
            q.outage := NULL;
        END IF;
    END IF;
    UPDATE @.delayed_queue x SET swept = now, grace = q.grace, outage = q.outage WHERE x.number = q.number;
    IF NOT waits THEN
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
                    WHERE l.queue = q.number AND l.state = 2 AND l.worker = holder AND l.lease_end < before
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
