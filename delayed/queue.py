"""The queue: a name in a store, and how what goes through it is encoded."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from delayed import batches, events, transactions, waits
from delayed.brokers import DEFAULT_URL, Broker, broker_for
from delayed.brokers.masked import masked
from delayed.codec import COMPRESS_ABOVE, MAX_SIZE, Codec, settings_of
from delayed.durations import seconds_of
from delayed.errors import AlreadyEnqueued, ConfigError
from delayed.fields import QUEUE_MAX, is_queue
from delayed.form import Calls
from delayed.producer import TIMEOUT, JoinedProducer, Producer, aside
from delayed.schedule import LATE, Schedule, checked_late, rule_of
from delayed.serializers import CloudPickle
from delayed.task import Task

if TYPE_CHECKING:
    from datetime import timedelta

    from delayed.consumer import Consumer
    from delayed.delay import Call
    from delayed.group import Group
    from delayed.handle import TaskHandle
    from delayed.keys import Keys
    from delayed.letters import DeadLetters
    from delayed.locks import Lock
    from delayed.message import Bounds
    from delayed.results import Postbox

ID_END = 2**53  # what stores count in doubles has to be below

R = TypeVar("R")


class Queue:
    """Tasks on their way from those who enqueue to workers. Making one opens nothing.

    One object may be used from any thread, and in forked processes.

    Args:
        name: 1 to 200 characters without control characters and braces.
        conn: the store: a URL such as ``redis://localhost:6379`` or ``sqlite:///tasks.db``, a ``redis.Redis``, or
            None for the URL in the environment variable ``DELAYED_URL``, and without that the file ``delayed.db``
            in the working folder.
        default_timeout: seconds that a task without its own timeout may run; None: no limit.
        requeue_timeout: seconds after the timeout of a task that was taken with :meth:`dequeue`, after which it
            counts as lost. Workers do not need it: they renew their leases.
        busy_len: accepted for delayed 0.2, and not used: lost tasks are recovered however long the queue is.
        serializer: pickle, cloudpickle, msgpack or json, or a class of your own, see :mod:`delayed.serializers`.
            Workers decode nothing else from this queue. The last two carry plain data, of which a worker makes what
            the function's parameters are annotated with.
        max_size: bytes that the arguments of one task may take, compressed or not.
        enqueue_timeout: seconds for which an enqueue waits in all for a store that does not answer, half a second more
            at most. A client or pool of your own may wait for longer, as it is set to.
        accept: further serializers that workers decode, for as long as some tasks come with them; and compressors of
            your own.
        compressor: zlib, gzip, bzip2, lzma, zstd or lz4, or a class of your own, see :mod:`delayed.compressors`; None
            (the default): none. Workers read what any of these made.
        compress_above: bytes from which on the arguments of a task are compressed, if that makes them fewer.
        secret: text or bytes, 16 bytes at least, with which payloads are signed: workers then run nothing that was not
            signed with it. Several of them: the first one signs, any of them is accepted. None (the default): those in
            the environment variable ``DELAYED_SECRET``, between commas, if there are some; ``[]``: none.
        encrypt: whether payloads are encrypted with the secret, rather than signed.
        accept_unsigned: whether workers run unsigned payloads in spite of a secret, for as long as some come without.
        allow: patterns of what workers run from this queue, such as ``["app.tasks.*"]``. None (the default): any
            function, if arguments come as pickles; else those that are decorated.
        dead_letters: whether workers keep tasks that failed for good as dead letters, see :attr:`dead`: True; or how
            many, or how many and for how long: ``5000``, ``(5000, "7d")``. What no code ever saw, such as an
            undecodable message, is always kept. So bounded are all dead letters of the queue; without a number,
            by 10,000 and 30 days.

    Raises:
        ConfigError: When an argument makes no sense.
        MissingDependency: When the store's driver or the serializer's package is not installed.
    """

    def __init__(
        self,
        name: str = "default",
        conn: Any = None,
        default_timeout: float | None = 600.0,
        requeue_timeout: float = 10.0,
        busy_len: int = 10,
        *,
        serializer: str | type[Any] = "pickle",
        max_size: int = MAX_SIZE,
        enqueue_timeout: float = TIMEOUT,
        accept: Sequence[str | type[Any]] = (),
        compressor: str | type[Any] | None = None,
        compress_above: int = COMPRESS_ABOVE,
        secret: str | bytes | Sequence[str | bytes] | None = None,
        encrypt: bool = False,
        accept_unsigned: bool = False,
        allow: Sequence[str] | None = None,
        dead_letters: bool | int | tuple[int, float | str] | None = None,
    ) -> None:
        self.name = _checked_name(name)
        self.default_timeout = _checked_timeout("default_timeout", default_timeout)
        self.requeue_timeout = requeue_timeout
        self.busy_len = busy_len
        self.codec = Codec(
            serializer,
            max_size,
            queue=self.name,
            accept=accept,
            compressor=compressor,
            compress_above=compress_above,
            secret=secret,
            encrypt=encrypt,
            accept_unsigned=accept_unsigned,
            allow=allow,
        )
        self.enqueue_timeout = enqueue_timeout
        self.dead_letters: Bounds | None = None
        if dead_letters is not None:
            from delayed.letters import bounds_of

            self.dead_letters = bounds_of(dead_letters)
        self._conn = conn
        self._broker: Broker | None = None
        self._producer: Producer | None = None
        self._schedules: list[Callable[[], Schedule]] = []
        self._postbox: Postbox | None = None
        self._consumers: dict[int, Consumer] = {}  # by process: a fork's claims are its own
        self._lock = threading.Lock()
        if conn is not None:
            self.broker  # noqa: B018  # so that a wrong URL or a missing driver is told where it was written

    @property
    def broker(self) -> Broker:
        """The store. The first use reads ``DELAYED_URL`` if the queue was given no `conn`; it does not connect."""
        if self._broker is None:
            broker = broker_for(self._conn)
            with self._lock:
                self._broker = self._broker or broker
        return self._broker

    @property
    def producer(self) -> Producer:
        """What enqueues."""
        if self._producer is None:
            producer = Producer(self.broker, self.name, self.enqueue_timeout)
            with self._lock:
                self._producer = self._producer or producer
        return self._producer

    @property
    def postbox(self) -> Postbox:
        """Where those wait who want the answers of its tasks."""
        if self._postbox is None:
            from delayed.results import Postbox

            with self._lock:
                self._postbox = self._postbox or Postbox(self.broker, self.name)
        return self._postbox

    def handle(self, id: int) -> TaskHandle[Any]:
        """The handle of the task with that id, whether or not there is one.

        Raises:
            ConfigError: When no task can have that id.
        """
        from delayed.handle import TaskHandle

        return TaskHandle(_checked_id(id), self.name, self)

    def group(self, ids: Iterable[int]) -> Group[Any]:
        """The handles of the tasks with these ids together, whether or not there are such tasks; see :class:`Group`.

        Raises:
            ConfigError: When no task can have one of the ids.
        """
        from delayed.group import Group

        return Group(self, map(_checked_id, ids))

    # -- enqueueing ------------------------------------------------------------------------------------------------

    def task(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Task:
        """The task that calls ``func(*args, **kwargs)``, to be enqueued here.

        Raises:
            NotEnqueueable: When no worker could find the function.
        """
        make = Task.create_by_value if isinstance(self.codec.serializer, CloudPickle) else Task.create
        return make(func, args, kwargs)

    def enqueue(self, task: Task) -> int:
        """Store a task, give it its id, and return that; of a unique one, if another holds its key, the id of that.

        Raises:
            NotEnqueueable: When its arguments can't be serialized.
            EnqueueRefused: When it is certainly not stored.
            EnqueueUncertain: When it may be stored or not.
            AlreadyEnqueued: When it is unique, to be rejected if there is another, and there is.
        """
        if task.unique is not None:
            return self._enqueue_once(task)
        producer = self._producing()
        attempts = producer.attempts()
        (id,) = producer.reserve_ids(1, attempts)
        clock = producer.clock(attempts) if task.expires is not None else 0.0
        producer.enqueue((task.to_message(self.codec, id, self.default_timeout, clock),), attempts)
        task.id = id
        if events.listeners:
            events.tell_enqueued(self.name, (task,))
        return id

    def enqueue_many(self, tasks: Iterable[Task]) -> list[int]:
        """Store tasks, much faster than one by one, give them their ids, and return those.

        A thousand at a time are stored, all or none; if that fails, those of the earlier thousands are stored and
        have an id. If one of them is unique, all are stored one by one, in their order.

        Raises:
            NotEnqueueable, EnqueueRefused, EnqueueUncertain, AlreadyEnqueued: As :meth:`enqueue`.
        """
        if not isinstance(tasks, Calls):
            tasks = list(tasks)
            if any(task.unique is not None for task in tasks):
                return [self.enqueue(task) for task in tasks]
        stored: list[int] = []
        for batch in batches.store(self, self._producing(), tasks):
            stored += batch.ids
            if isinstance(tasks, Calls) and not events.listeners:
                continue  # nobody sees them
            seen = list(batch.tasks)
            for task, id in zip(seen, batch.ids, strict=True):
                task.id = id
            if events.listeners:
                events.tell_enqueued(self.name, seen)
        return stored

    def _enqueue_once(self, task: Task) -> int:
        assert task.unique is not None
        once = task.once(self.codec)
        producer = self._producing()
        attempts = producer.attempts()
        (id,) = producer.reserve_ids(1, attempts)
        clock = producer.clock(attempts) if task.expires is not None else 0.0
        holder = producer.enqueue_once(task.to_message(self.codec, id, self.default_timeout, clock), once, attempts)
        if holder != id and task.unique.on_conflict == "reject":
            raise AlreadyEnqueued(
                f"{task.func_path} is not enqueued: task {holder} in queue {self.name!r} is the same",
                self.handle(holder),
            )
        task.id = holder
        if holder == id and events.listeners:
            events.tell_enqueued(self.name, (task,))
        return holder

    @contextmanager
    def transaction(self, conn: Any) -> Iterator[None]:
        """Enqueue as a part of a transaction of your own: rolled back with it, visible to workers with its commit.

        >>> with psycopg.connect(url) as conn, queue.transaction(conn):
        ...     conn.execute("INSERT INTO orders ...")
        ...     confirm.delay(order_id)

        It holds for whatever is enqueued in the block, in this thread or asyncio task, to this queue and to others in
        the same store. It neither commits nor rolls back: that stays with you, and your driver.

        Args:
            conn: a connection to the database that the queue is in, whose transaction it is: of ``sqlite3``, psycopg 3,
                SQLAlchemy (a Session or Connection) or ``django.db.connection``; on MongoDB a ``ClientSession``.

        Raises:
            Unsupported: When the store has no transactions (Redis).
            ConfigError: When `conn` is not a connection to the queue's store.
        """
        with transactions.open(self.broker, self.broker.join(conn)):
            yield

    def in_transaction(self) -> bool:
        """Whether what is enqueued here, in this thread or asyncio task, becomes a part of a :meth:`transaction`."""
        return transactions.is_open() and transactions.find(self.broker) is not None

    # -- before they run -------------------------------------------------------------------------------------------

    def reschedule(self, id: int, delay: float | timedelta | str) -> bool:
        """Let a task that waits, for its time or for a worker, become due after `delay` from now.

        Args:
            id: of the task.
            delay: seconds, a :class:`datetime.timedelta`, or text such as ``5m``; 0: at once, behind what waits. A
                task that expires before that is not run then.

        Returns:
            False if it does not wait: it runs, it has ended, or there is none.

        Raises:
            ConfigError: When the delay makes no sense.
            BrokerUnavailable: When the store can't be reached.
        """
        return self.broker.reschedule(self.name, id, seconds_of("delay", delay))

    def cancel(self, id: int) -> bool:
        """Remove a task that waits, for its time or for a worker. If its answer is to be kept, that is that it was
        cancelled.

        Returns:
            False if it does not wait: it runs, it has ended, or there is none. What runs is left alone;
            :meth:`TaskHandle.cancel` stops that too.

        Raises:
            BrokerUnavailable: When the store can't be reached.
        """
        from delayed.answers import cancelled

        entry = self.broker.get(self.name, id)
        keep = entry.message.keep if entry is not None else None
        removed = self.broker.remove(self.name, id, None if keep is None else cancelled(keep), dead=False)
        if removed and keep is not None:
            waits.wake(self.broker, ((self.name, id),))
        return removed

    # -- what is enqueued by itself --------------------------------------------------------------------------------

    def add_schedule(self, make: Callable[[], Schedule]) -> None:
        """Have workers that know of this queue enqueue a task again and again; ``@delayed(queue).every(...)`` does."""
        self._schedules.append(make)

    def declared_schedules(self) -> list[Schedule]:
        """Those of decorated functions, as far as this process has imported their modules.

        Raises:
            NotEnqueueable: When a worker could not find a function.
        """
        return [make() for make in self._schedules]

    def schedule(
        self,
        name: str,
        function: Callable[..., Any] | Call[..., Any],
        /,
        *args: Any,
        every: float | timedelta | str | None = None,
        cron: str | None = None,
        tz: str | None = None,
        late: float | timedelta | str = LATE,
        **kwargs: Any,
    ) -> None:
        """Have ``function(*args, **kwargs)`` enqueued by itself, again and again, until :meth:`unschedule`.

        It is kept in the store, outlives this process, and takes the place of what has the same name; if that is the
        same to the letter, nothing changes. Workers of this queue follow it within seconds, with `--queue` too, and
        each tick comes once however many they are.

        Args:
            name: unique in the queue; 1 to 491 characters.
            function: decorated, or ``f.options(...)``, whose options hold for each task; or any function.
            every: seconds, a timedelta, or text such as ``"5m"``, from 0.1 s: at its multiples since 1970 in UTC.
            cron: or an expression of cron, such as ``"*/5 9-17 * * mon-fri"``; needs ``delayed[cron]``.
            tz: the time zone that `cron` means; None: UTC.
            late: how late the last tick is made up for, if nobody was there for it; half an hour at most. Earlier ones
                are left out, and so are those before it was scheduled.

        Raises:
            ConfigError: When a value makes no sense, or it takes more than 64 KB.
            NotEnqueueable, SignatureMismatch: When no worker could run it.
            MissingDependency: When `cron` is given and ``cronsim`` is not installed.
            BrokerUnavailable: When the store can't be reached.
        """
        from delayed import schedules

        message = schedules.message_of(self, function, args, kwargs)
        seconds = checked_late(seconds_of("late", late))
        schedules.put(self, Schedule.of(rule_of(every, cron, tz), seconds, message, schedules.checked_name(name)))

    def unschedule(self, name: str) -> bool:
        """End what :meth:`schedule` began. What it has enqueued is left alone.

        Returns:
            False if there is none of this name.

        Raises:
            BrokerUnavailable: When the store can't be reached.
        """
        from delayed import schedules

        return schedules.remove(self, schedules.checked_name(name))

    def schedules(self) -> list[Schedule]:
        """What is enqueued by itself: the functions that are decorated for it, as far as this process has imported
        their modules, and behind them what the store keeps, by name. What can't be read is left out, and logged.

        Raises:
            NotEnqueueable: When a worker could not find a function.
            BrokerUnavailable: When the store can't be reached.
        """
        from delayed import schedules

        return self.declared_schedules() + schedules.load(self)

    def _producing(self) -> Producer | JoinedProducer:
        """What enqueues now: through the open transaction, if there is one in this queue's store."""
        if transactions.is_open():
            joined = transactions.find(self.broker)
            if joined is not None:
                return JoinedProducer(joined, self.name)
        return self._producer or self.producer

    async def _aside(self, call: Callable[[], R]) -> R:
        """What `call` returns, which enqueues here, in another thread."""
        return await aside(call, lambda: self._producer is not None and self._producer.away, self.enqueue_timeout)

    # -- pausing ---------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Let no worker take tasks from this queue until :meth:`resume`. What runs goes on, and so does enqueueing.

        A worker may have taken a few tasks ahead of need, some hundredths of a second of work; those still run. A pause
        outlives its process, and every restart of the store that keeps the tasks.

        Raises:
            BrokerUnavailable: When the store can't be reached.
        """
        self.broker.pause(self.name)

    def resume(self) -> None:
        """End a pause: workers go on at once."""
        self.broker.resume(self.name)

    @property
    def paused(self) -> bool:
        """Whether the queue is paused now. Asks the store."""
        return self.broker.paused(self.name)

    # -- what programs share ---------------------------------------------------------------------------------------

    def lock(
        self, name: str, ttl: float | timedelta | str = "30s", wait: float | timedelta | str | None = None
    ) -> Lock:
        """A lock that one holds at a time, on whatever host: ``with queue.lock("invoices"): ...``.

        Args:
            name: the lock's; each queue has its own.
            ttl: how long it is held, unless it is extended: seconds, a :class:`datetime.timedelta`, or text such as
                ``10m``. When a holder dies it is free again then.
            wait: how long it is waited for; None: for ever.

        Raises:
            ConfigError: When an argument makes no sense.
        """
        from delayed.locks import Lock

        return Lock(self.broker, self.name, name, ttl, wait, self.enqueue_timeout)

    @property
    def keys(self) -> Keys:
        """Small values under names, which programs share through the store."""
        from delayed.keys import Keys

        return Keys(self.broker, self.name, self.enqueue_timeout)

    # -- taking by hand --------------------------------------------------------------------------------------------

    def dequeue(self) -> Task | None:
        """Take the next task, or None if none comes within a second.

        It is this process's until :meth:`release` or :meth:`requeue`, or until its timeout and `requeue_timeout`
        are over; then a sweeper returns it. A task without timeout is lost after a day.
        """
        return self._consumer().take()

    def release(self, task: Task) -> bool:
        """Forget a task of :meth:`dequeue`, whether it succeeded or failed. False if it is no longer held."""
        return self._consumer().finish(task)

    def requeue(self, task: Task) -> bool:
        """Put a task of :meth:`dequeue` at the end of the queue. False if it is no longer held."""
        return self._consumer().give_back(task)

    def requeue_lost(self) -> int:
        """Do what a sweeper does, once; return how many lost tasks are in the queue again."""
        return self.broker.sweep(self.name).returned

    def _consumer(self) -> Consumer:
        from delayed.consumer import Consumer

        found = self._consumers.get(os.getpid())
        if found is None:
            fresh = Consumer(self.broker, self.name, self.codec, self.requeue_timeout)
            found = self._consumers.setdefault(os.getpid(), fresh)
        return found

    # -- itself ----------------------------------------------------------------------------------------------------

    @property
    def dead(self) -> DeadLetters:
        """The dead letters of this queue."""
        from delayed.letters import DeadLetters

        return DeadLetters(self.broker, self.name)

    def len(self) -> int:
        """How many tasks wait, those included that wait for their time."""
        counts = self.broker.counts(self.name)
        return counts.ready + counts.scheduled

    def dequeued_len(self) -> int:
        """How many tasks workers hold: those that run, and those that are about to."""
        return self.broker.counts(self.name).running

    def index(self, id: int, max_index: int = 0) -> int:
        """Where a task is in the queue.

        Args:
            id: the task's.
            max_index: how many of the tasks that are next are looked at; 0: all. That takes time where there are many.

        Returns:
            0 if a worker holds it; 1 if it is next, and so on; -1 if it is not among those that are ready, or further
            behind than `max_index`.
        """
        entry = self.broker.get(self.name, id)
        if entry is None or entry.state not in ("ready", "running"):
            return -1
        if entry.state == "running":
            return 0
        from delayed.letters import walk

        places = (each.message.id for each in walk(self.broker, self.name, "ready", max_index or inf))
        return next((place for place, each in enumerate(places, 1) if each == id), -1)

    def __len__(self) -> int:
        return self.len()

    def __bool__(self) -> bool:
        return True  # an empty queue is a queue

    def spec(self, *, secret: bool = True) -> dict[str, Any]:
        """Plain data from which :meth:`from_spec` makes the same queue in another process.

        Args:
            secret: whether the queue's secrets are in it; if not, the other process has to know them.

        Raises:
            ConfigError: When another process can't open its store.
        """
        url = self.broker.spec()
        if url is None:
            raise ConfigError(
                f"no other process can open {self.broker!r} by a URL; give Queue({self.name!r}, ...) a URL instead"
            )
        return {
            "name": self.name,
            "url": url,
            "codec": self.codec.spec(secret=secret),
            "schedules": [schedule.data() for schedule in self.declared_schedules()] if secret else [],
            "default_timeout": self.default_timeout,
            "requeue_timeout": self.requeue_timeout,
            "dead_letters": None if self.dead_letters is None else list(self.dead_letters),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Queue:
        """The queue of :meth:`spec`."""
        codec = settings_of(spec["codec"])
        del codec["queue"]
        codec["dead_letters"] = spec["dead_letters"]
        queue = cls(spec["name"], spec["url"], spec["default_timeout"], spec["requeue_timeout"], **codec)
        for data in spec["schedules"]:
            queue.add_schedule(partial(Schedule.from_data, data))
        return queue

    def __reduce__(self) -> tuple[Any, ...]:
        # With a function that travels by value and enqueues others. The store's URL goes with it, into that same store.
        # Its secrets do not: whoever reads the store would have them.
        return Queue.from_spec, (self.spec(secret=False),)

    def __repr__(self) -> str:
        place = self._broker or masked(os.environ.get("DELAYED_URL") or DEFAULT_URL)
        return f"<Queue {self.name} on {place}>"


def _checked_name(name: str) -> str:
    if not isinstance(name, str):
        raise ConfigError(f"a queue's name is text, not {name!r}")
    if not is_queue(name):
        raise ConfigError(
            f"{name[:QUEUE_MAX]!r} can't name a queue: 1 to {QUEUE_MAX} characters, no control characters, no braces"
        )
    return name


def _checked_id(id: int) -> int:
    if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < ID_END:
        raise ConfigError(f"a task's id is a whole number from 0 to 2**53, as its handle's `id` tells it, not {id!r}")
    return id


def _checked_timeout(name: str, value: float | None) -> float | None:
    if value is None or value == inf:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ConfigError(f"{name} must be a number of seconds above 0, or None for no limit, not {value!r}")
    return value
