"""The small values of queues in PostgreSQL: statements, in which ``@.`` stands for the schema, and who runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from delayed.brokers import keys
from delayed.brokers.postgres_link import Link
from delayed.message import Stored

_NUMBER = "queue = (SELECT number FROM @.delayed_queue WHERE name = %(queue)s)"
_LIVE = "until > clock_timestamp()"
_GET = f"""
    SELECT name, value, version,
        CASE WHEN until < 'infinity' THEN extract(epoch FROM until - clock_timestamp())::float8 END
    FROM @.delayed_key WHERE {_NUMBER} AND name = ANY (%(names)s::text[]) AND {_LIVE}
"""
_PUT = """
    SELECT @.delayed_put_key(
        %(queue)s::text, %(name)s::text, %(value)b::bytea, %(ttl)s::float8, %(version)s::bigint, %(keep)s::boolean
    )
"""
_ADD = "SELECT @.delayed_add_key(%(queue)s::text, %(name)s::text, %(by)s::bigint, %(ttl)s::float8)"
_LIST = f"""
    SELECT name FROM @.delayed_key WHERE {_NUMBER} AND name >= %(prefix)s::text {{below}} AND {_LIVE}
    ORDER BY name LIMIT %(limit)s
"""
FORGET = f"@.delayed_forget_keys({keys.FORGET_MAX})"


class PostgresKeys:
    """See :meth:`Broker.put_key`.

    Args:
        link: the way to the database.
        sql: makes a statement of the schema of its text.
    """

    def __init__(self, link: Link, sql: Callable[[str], bytes]) -> None:
        self._link = link
        self._sql = sql

    def get(self, queue: str, names: Sequence[str]) -> dict[str, Stored]:
        rows = self._link.run(self._sql(_GET), {"queue": queue, "names": list(names)})
        return {name: Stored(value, version, left) for name, value, version, left in rows}

    def put(
        self, queue: str, name: str, value: bytes | None, ttl: float | None, version: int | None, keep: bool
    ) -> int:
        values = {"queue": queue, "name": name, "value": value, "ttl": ttl, "version": version, "keep": keep}
        ((found,),) = self._link.run(self._sql(_PUT), values)
        return int(found)

    def add(self, queue: str, name: str, by: int, ttl: float | None) -> int:
        keys.bounded(name, by)
        while True:
            ((total,),) = self._link.run(self._sql(_ADD), {"queue": queue, "name": name, "by": by, "ttl": ttl})
            if total is not None:
                return int(total)
            found = self.get(queue, (name,)).get(name)
            if found is not None:  # else it has just run out
                keys.total(name, found.value, by)

    def list(self, queue: str, prefix: str, limit: int) -> list[str]:
        end = keys.following(prefix)
        statement = _LIST.format(below="" if end is None else "AND name < %(end)s::text")
        values = {"queue": queue, "prefix": prefix, "end": end, "limit": limit}
        return [name for (name,) in self._link.run(self._sql(statement), values)]
