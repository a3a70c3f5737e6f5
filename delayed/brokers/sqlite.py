"""The SQLite broker: the embedded default, one file, no server."""

from __future__ import annotations

import contextlib
import difflib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from delayed.brokers import keys
from delayed.brokers import sqlite_access as access
from delayed.brokers import sqlite_alive as alive
from delayed.brokers import sqlite_answers as answers
from delayed.brokers import sqlite_keys as values
from delayed.brokers import sqlite_look as look
from delayed.brokers import sqlite_once as onces
from delayed.brokers import sqlite_people as people
from delayed.brokers import sqlite_tasks as tasks
from delayed.brokers.base import LEASE, Broker, Listener
from delayed.brokers.masked import masked
from delayed.brokers.odd import tasks_among
from delayed.brokers.sqlite_file import RESERVE, SQLiteFile
from delayed.brokers.sqlite_join import SQLiteJoined, TaskConnection, join
from delayed.brokers.sqlite_open import path_of
from delayed.errors import BrokerError, ConfigError, TaskLost, UnknownOption
from delayed.message import (
    Answer,
    Bounds,
    Claim,
    Counts,
    Entry,
    Message,
    Once,
    Ref,
    Renewal,
    Settlement,
    State,
    Stored,
    Swept,
    WorkerInfo,
)

POLL = 1.0  # seconds after which a sleeper looks by itself, should a ring be lost
POLL_WITHOUT_FIFO = 0.05  # ... and where there are no FIFOs to ring with
SWEEP_NOTE = 1000  # milliseconds between two notes of sweeps that found nothing
PURGE_CHUNK = 10_000  # rows that one transaction removes at most, so that others get their turn
WAL_WARNING = 64 << 20  # bytes


class SQLiteBroker(Broker):
    """Tasks in one SQLite file, on a local disk.

    Beside it lie SQLite's own ``-wal`` and ``-shm``, a ``-lock`` and a folder ``-wake``; none may be removed while the
    file is in use.

    Args:
        conn: ``sqlite:///relative.db``, ``sqlite:////absolute/path.db``, or an open :class:`sqlite3.Connection`, of
            which only the path is used. Options of the URL: ``durability=process`` (the default: a commit survives
            the death of every process, and a power cut may take the last commits) or ``durability=disk``;
            ``max_size=`` in MB, beyond which enqueue raises :class:`BrokerFull`.

    Raises:
        ConfigError: When the URL is wrong, or names no file.
    """

    scheme: ClassVar[str] = "sqlite"
    sweep_interval: ClassVar[float] = 0.8  # for a sweep looks at locks here, which tell at once who has died

    def __init__(self, conn: str | sqlite3.Connection) -> None:
        path, self._options = _place_of(conn)
        self._file = SQLiteFile(
            path,
            durable=self._options.get("durability") == "disk",
            max_size=int(self._options.get("max_size", "0")) << 20,
        )
        self._own: SQLiteFile | None = None  # the same file, for the transactions of tasks

    # -- producing ---------------------------------------------------------------------------------------------

    def reserve_ids(self, queue: str, n: int) -> int:
        ((_, number),) = self._numbered([queue])
        with self._file.write(growing=True) as file:
            return tasks.reserve_ids(file.db, number, n, file.now())

    def clock(self, queue: str) -> float:
        with self._file.read() as file:
            return file.now() / 1000

    def enqueue(self, queue: str, messages: Sequence[Message], session: str, seq: int) -> None:
        ((_, number),) = self._numbered([queue])
        with self._file.write(growing=True) as file:
            tasks.insert(file.db, number, messages, session, seq, file.now())
        self._file.bell.ring(number)

    def enqueue_once(self, queue: str, message: Message, once: Once, session: str, seq: int) -> int:
        ((_, number),) = self._numbered([queue])
        with self._file.write(growing=True) as file:
            id = onces.insert(file.db, number, message, once, session, seq, file.now())
        if id == message.id:
            self._file.bell.ring(number)
        return id

    def join(self, conn: Any) -> SQLiteJoined:
        return join(self._file, conn)

    # -- working -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, ref: Ref, answer: Answer | None = None) -> Iterator[SQLiteJoined]:
        """See :meth:`Broker.transaction`. Everybody else who writes to the file waits for the end of the block."""
        numbers = dict(self._numbered([ref.queue]))
        own = self._own = self._own or self._file.another(TaskConnection)
        with own.transaction() as opened:
            lost = TaskLost(f"the claim of task {ref.id} does not hold any more; nothing of its transaction is kept")
            if not tasks.holds(opened.db, numbers, ref):
                raise lost
            joined = SQLiteJoined(own, opened.db)
            yield joined
            if not opened.db.in_transaction:
                raise BrokerError(
                    f"{self._file.path}: a COMMIT or ROLLBACK inside current.transaction() has ended it early; what "
                    "was committed stays, and the task is not ended by it"
                )
            if not all(tasks.settle(opened.db, numbers, [Settlement(ref, "done")], opened.now())):
                raise lost
            if answer is not None:
                answers.put(opened.db, numbers[ref.queue], ref.id, answer, opened.now())
        joined.leave()

    def alive(self, worker: str) -> contextlib.AbstractContextManager[int]:
        return alive.held(self._file.wakes, worker)

    def claim(self, queues: Sequence[str], worker: str, seq: int, nonce: int, limit: int, lease: float) -> list[Claim]:
        return self.settle_and_claim(worker, (), queues, seq, nonce, limit, lease)[1]

    def settle(self, worker: str, settlements: Sequence[Settlement]) -> list[bool]:
        return self.settle_and_claim(worker, settlements, (), 0, 0, 0, 0.0)[0]

    def settle_and_claim(
        self,
        worker: str,
        settlements: Sequence[Settlement],
        queues: Sequence[str],
        seq: int,
        nonce: int,
        limit: int,
        lease: float,
    ) -> tuple[list[bool], list[Claim]]:
        numbered = self._numbered(queues) if limit > 0 else []
        settled_in = {number for _, number in self._numbered({settlement.ref.queue for settlement in settlements})}
        if not settlements and not self._claimable(numbered, worker, seq):
            return [], []
        accepted: list[bool] = []
        claims: list[Claim] = []
        answered: set[int] = set()
        keeps = any(settlement.answer is not None for settlement in settlements)
        with self._file.write() as file:
            db, now = file.db, file.now()
            if settlements:
                accepted = tasks.settle(db, file.numbers, settlements, now)
            if keeps:
                answered = answers.put_settled(db, file.numbers, settlements, accepted, now)
            if numbered:
                if tasks.was_claimed(db, worker, seq):
                    claims = [claim for claim in tasks.held(db, numbered, worker) if claim.nonce == nonce]
                else:
                    tasks.note_claim(db, worker, seq, now)
                    claims = tasks.take(db, numbered, worker, nonce, limit, now, now + round(lease * 1000))
            # What a settlement gave back, and what this claim leaves behind, is for the next sleeper.
            changed = settled_in.union([number for _, number in numbered])
            to_ring = [number for number in changed if tasks.has_ready(db, number)]
        if any(settlement.delay > 0 for settlement in settlements):
            to_ring = list(settled_in.union(to_ring))  # a sleeper has to learn when they will be due
        for number in to_ring:
            self._file.bell.ring(number)
        for number in answered:
            answers.ring(self._file.wakes, number)
        return accepted, self._tasks(worker, claims)

    def renew(self, worker: str, queues: Sequence[str], refs: Sequence[Ref], lease: float) -> Renewal:
        numbered = self._numbered(dict.fromkeys([*queues, *[ref.queue for ref in refs]]))
        if not refs:
            with self._file.read() as file:
                unknown = tasks.held(file.db, numbered, worker)
            return Renewal([], [], self._tasks(worker, unknown))
        with self._file.write() as file:
            there = tasks.held_refs(file.db, numbered, worker)
            known = set(refs)
            held = [ref for ref in refs if ref in there]
            lost = [ref for ref in refs if ref not in there]
            unknown = []
            if not there <= known:
                unknown = [claim for claim in tasks.held(file.db, numbered, worker) if claim.ref not in known]
            tasks.renew(file.db, file.numbers, held, file.now() + round(lease * 1000))
        return Renewal(held, lost, self._tasks(worker, unknown))

    def held(self, worker: str, queues: Sequence[str]) -> list[Claim]:
        numbered = self._numbered(queues)
        with self._file.read() as file:
            found = tasks.held(file.db, numbered, worker)
        return self._tasks(worker, found)

    def _tasks(self, worker: str, claims: list[Claim]) -> list[Claim]:
        """Those of the claims that are tasks; see :func:`tasks_among`."""

        def remove(claim: Claim) -> None:
            ((_, number),) = self._numbered([claim.queue])
            with self._file.write() as file:
                tasks.remove_odd(file.db, number, worker)

        return tasks_among(self, worker, claims, remove)

    def wait(self, queues: Sequence[str], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        numbered = self._numbered(queues)
        numbers = [number for _, number in numbered]
        bell = self._file.bell
        floor = POLL if bell.reaches(numbers) else POLL_WITHOUT_FIFO
        while True:
            due = self._next_due(numbered)
            left = deadline - time.monotonic()
            if due <= 0 or left <= 0 or bell.sleep(numbers, min(left, floor, due)):
                return

    def wake(self, queues: Sequence[str]) -> None:
        self._file.bell.wake()

    # -- answers -----------------------------------------------------------------------------------------------

    def put_result(self, queue: str, id: int, answer: Answer) -> None:
        ((_, number),) = self._numbered([queue])
        with self._file.write() as file:
            answers.put(file.db, number, id, answer, file.now())
        answers.ring(self._file.wakes, number)

    def get_results(self, queue: str, ids: Sequence[int]) -> dict[int, bytes]:
        with self._file.read() as file:
            return answers.get(file.db, queue, ids, file.now())

    def listen(self, queue: str) -> Listener:
        ((_, number),) = self._numbered([queue])
        return answers.SQLiteListener(self._file.wakes, number)

    # -- small values ------------------------------------------------------------------------------------------

    def get_keys(self, queue: str, names: Sequence[str]) -> dict[str, Stored]:
        with self._file.read() as file:
            return values.get(file.db, queue, names, file.now())

    def put_key(
        self,
        queue: str,
        name: str,
        value: bytes | None,
        *,
        ttl: float | None = None,
        version: int | None = None,
        keep_version: bool = False,
    ) -> int:
        keys.checked(name, value)
        if version is not None:  # who waits for a lock keeps nobody from writing
            found = self.get_keys(queue, (name,)).get(name)
            if version != (found.version if found is not None else 0):
                return 0
        (numbered,) = self._numbered([queue])
        with self._file.write(growing=value is not None and not version) as file:
            return values.put(file.db, numbered, name, value, ttl, version, keep_version, file.now())

    def add_key(self, queue: str, name: str, by: int, ttl: float | None = None) -> int:
        keys.checked(name)
        keys.bounded(name, by)
        (numbered,) = self._numbered([queue])
        with self._file.write(growing=True) as file:
            return values.add(file.db, numbered, name, by, ttl, file.now())

    def list_keys(self, queue: str, prefix: str, limit: int = 1000) -> list[str]:
        with self._file.read() as file:
            return values.list_names(file.db, queue, prefix, limit, file.now())

    # -- pausing -----------------------------------------------------------------------------------------------

    def pause(self, queue: str) -> None:
        self._pause(queue, True)

    def resume(self, queue: str) -> None:
        self._file.bell.ring(self._pause(queue, False))

    def _pause(self, queue: str, paused: bool) -> int:
        ((_, number),) = self._numbered([queue])
        with self._file.write() as file:
            tasks.pause(file.db, number, paused)
        return number

    def paused(self, queue: str) -> bool:
        with self._file.read() as file:
            rows = file.db.execute("SELECT paused FROM delayed_queue WHERE name = ?", (queue,)).fetchall()
        return bool(rows and rows[0][0])

    # -- repairing ---------------------------------------------------------------------------------------------

    def sweep(self, queue: str, lease: float = LEASE) -> Swept:
        ((_, number),) = self._numbered([queue])
        with alive.gone(self._file.wakes) as workers:
            if workers:
                with self._file.write() as file:
                    tasks.expire(file.db, workers)
        lease_ms = round(lease * 1000)
        with self._file.read() as file:  # most sweeps find nothing, and need not keep others from writing
            now = file.now()
            grace = tasks.grace(file.db, number)
            recent = grace.swept is not None and now - grace.swept < min(SWEEP_NOTE, lease_ms // 8)
            if recent and not tasks.has_lost(file.db, number, now if now >= grace.until else tasks.CERTAIN):
                return Swept(0, 0, now < grace.until)
        with self._file.write() as file:
            db, now = file.db, file.now()
            grace, before = tasks.grace(db, number).sweep(now, lease_ms)
            tasks.note_sweep(db, number, now, grace)
            tasks.tidy(db, number, now)
            answers.forget(db, now)
            values.forget(db, now)
            onces.forget(db, number, now)
            returned, dead = tasks.return_lost(db, number, now, tasks.CERTAIN if before is None else before)
            waiting = tasks.has_ready(db, number)
        if waiting:
            self._file.bell.ring(number)
        return Swept(returned, dead, before is None)

    # -- looking and tidying -----------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        with self._file.read() as file:
            rows = file.db.execute("SELECT name FROM delayed_queue WHERE used ORDER BY name").fetchall()
        return [name for (name,) in rows]

    def counts(self, queue: str) -> Counts:
        with self._file.read() as file:
            return look.counts(file.db, queue, file.now())

    def peek(
        self, queue: str, state: State, limit: int = 100, after: Entry | None = None, *, payloads: bool = True
    ) -> list[Entry]:
        with self._file.read() as file:
            return look.peek(file.db, queue, state, limit, after, file.now(), payloads=payloads)

    def get(self, queue: str, id: int) -> Entry | None:
        with self._file.read() as file:
            return look.get(file.db, queue, id, file.now())

    def remove(self, queue: str, id: int, answer: Answer | None = None, *, dead: bool = True) -> bool:
        if answer is None:
            with self._file.write() as file:
                return look.remove(file.db, queue, id, dead)
        ((_, number),) = self._numbered([queue])
        with self._file.write() as file:
            removed = look.remove(file.db, queue, id, dead)
            if removed:
                answers.put(file.db, number, id, answer, file.now())
        if removed:
            answers.ring(self._file.wakes, number)
        return removed

    def reschedule(self, queue: str, id: int, delay: float) -> bool:
        ((_, number),) = self._numbered([queue])
        with self._file.write() as file:
            moved = tasks.reschedule(file.db, number, id, delay, file.now())
        if moved:
            self._file.bell.ring(number)
        return moved

    def purge(self, queue: str, states: Sequence[State] = ("scheduled", "ready", "dead")) -> int:
        if "running" in states:
            raise ValueError("running tasks can't be purged: stop their workers, or wait until they have ended")
        removed = 0
        for where in [where for state in dict.fromkeys(states) for where in look.wheres(state)]:
            chunk = PURGE_CHUNK
            while chunk == PURGE_CHUNK:
                with self._file.write() as file:
                    chunk = look.purge(file.db, queue, where, PURGE_CHUNK, file.now())
                removed += chunk
        return removed

    # -- dead letters ------------------------------------------------------------------------------------------

    def revive(self, queue: str, ids: Sequence[int]) -> list[int]:
        ((_, number),) = self._numbered([queue])
        with self._file.write(growing=True) as file:
            revived = tasks.revive(file.db, number, ids)
        if revived:
            self._file.bell.ring(number)
        return revived

    def drop(self, queue: str, ids: Sequence[int]) -> list[int]:
        ((_, number),) = self._numbered([queue])
        with self._file.write() as file:
            return tasks.drop(file.db, number, ids)

    def bound(self, queue: str, bounds: Bounds) -> None:
        ((_, number),) = self._numbered([queue])
        with self._file.write() as file:
            tasks.bound(file.db, number, bounds)

    # -- workers and people ------------------------------------------------------------------------------------

    def announce(
        self, worker: str, queues: Sequence[str], info: Mapping[str, Any] | None, ttl: float
    ) -> list[Mapping[str, Any]]:
        numbers = [number for _, number in self._numbered(queues)]
        with self._file.write() as file:
            return people.announce(file.db, worker, numbers, info, file.now(), ttl)

    def workers(self, queue: str) -> list[WorkerInfo]:
        with self._file.read() as file:
            return people.workers(file.db, queue, file.now())

    def ask(self, worker: str, queue: str, order: Mapping[str, Any], ttl: float) -> None:
        with self._file.write() as file:
            people.ask(file.db, worker, order, file.now(), ttl)

    # -- itself ------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        with self._file.read() as file:
            file.db.execute("SELECT count(*) FROM delayed_queue").fetchall()
        path = self._file.path
        warnings = access.warnings(path)
        size, free = self._file.wal_size(), self._file.free_space()
        if size > WAL_WARNING:
            warnings.append(
                f"{path}-wal has grown to {size >> 20} MB, because some program reads the database in one long "
                f"transaction: end that (to find it: fuser {path})"
            )
        if free < 4 * RESERVE:
            warnings.append(
                f"the disk of {path} has {free >> 20} MB left, and with less than {RESERVE >> 20} MB nothing more is "
                "enqueued: free some space"
            )
        return warnings

    def spec(self) -> str | None:
        options = "&".join(f"{name}={value}" for name, value in self._options.items())
        return f"sqlite:///{quote(self._file.path)}" + (f"?{options}" if options else "")

    def close(self) -> None:
        self._file.close()
        if self._own is not None:
            self._own.close()

    def __repr__(self) -> str:
        return f"SQLiteBroker({self.spec()!r})"

    # -- parts -------------------------------------------------------------------------------------------------

    def _numbered(self, queues: Iterable[str]) -> list[tuple[str, int]]:
        """These queues, each once, with their numbers; those that have none yet get one."""
        with self._file.read() as file:
            known = file.numbers
            missing = [(queue,) for queue in queues if queue not in known]
            if missing:
                with self._file.write():
                    file.db.executemany("INSERT INTO delayed_queue (name) VALUES (?) ON CONFLICT DO NOTHING", missing)
                known.update(file.db.execute("SELECT name, number FROM delayed_queue").fetchall())
            return [(queue, known[queue]) for queue in dict.fromkeys(queues)]

    def _claimable(self, queues: Sequence[tuple[str, int]], worker: str, seq: int) -> bool:
        """Whether a claim has anything to do. Only a read: an idle worker never keeps others from writing."""
        if not queues:
            return False
        with self._file.read() as file:
            return self._next_due(queues) <= 0 or tasks.was_claimed(file.db, worker, seq)

    def _next_due(self, queues: Sequence[tuple[str, int]]) -> float:
        """Seconds until one of these queues has something to claim, as far as is known now; inf if nothing waits."""
        with self._file.read() as file:
            now = file.now()
            return min((tasks.next_due(file.db, number, now) for _, number in queues), default=float("inf"))


def _place_of(conn: str | sqlite3.Connection) -> tuple[str, dict[str, str]]:
    """The absolute path of the database, and the options of the URL."""
    options: dict[str, str] = {}
    if isinstance(conn, sqlite3.Connection):
        path = path_of(conn)
    else:
        parts = urlsplit(conn)
        if parts.netloc:
            shown = masked(f"sqlite://{parts.netloc}{parts.path}")
            raise ConfigError(
                f"{shown!r} has a host where none belongs; did you mean {shown.replace('://', ':///', 1)!r}?"
            )
        path = unquote(parts.path.removeprefix("/"))
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not path or path == ":memory:":
        raise ConfigError(
            "a SQLite database in memory belongs to one connection, and no worker could reach it: use memory:// in "
            "tests, or name a file: sqlite:///tasks.db"
        )
    _check_options(options)
    return os.path.realpath(path), options


def _check_options(options: Mapping[str, str]) -> None:
    known = ("durability", "max_size")
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UnknownOption(f"sqlite:// has no option {name!r}; {hint}")
        if name == "durability" and value not in ("process", "disk"):
            raise ConfigError(f"durability={value}: it can be 'process' (the default) or 'disk'")
        if name == "max_size" and not (value.isascii() and value.isdigit() and int(value) > 0):
            raise ConfigError(f"max_size={value}: it must be a whole number of megabytes")
