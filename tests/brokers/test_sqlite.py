"""What is special to the SQLite broker; what all brokers do is in test_conformance.py."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from delayed.brokers import broker_for, sqlite_file, sqlite_open
from delayed.brokers.sqlite import SQLiteBroker
from delayed.brokers.sqlite_file import SQLiteFile
from delayed.brokers.sqlite_open import file_system
from delayed.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError, UnknownOption
from delayed.message import Answer, Claim, Message, Settlement

SESSION, WORKER = "5" * 32, "a" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def broker(path: Path) -> Iterator[SQLiteBroker]:
    broker = SQLiteBroker(f"sqlite:///{path}")
    yield broker
    broker.close()


def put(broker: SQLiteBroker, n: int = 1, payload: bytes = b"payload", session: str | None = None) -> list[int]:
    """Enqueue `n` tasks on the queue "q" at once; their ids."""
    first = broker.reserve_ids("q", n)
    ids = list(range(first, first + n))
    messages = [Message(id=id, func="module:function", payload=payload) for id in ids]
    broker.enqueue("q", messages, session or secrets.token_hex(16), 1)
    return ids


def take(broker: SQLiteBroker, limit: int = 100, worker: str = "") -> list[Claim]:
    """Claim from the queue "q", as a worker of its own."""
    return broker.claim(["q"], worker or secrets.token_hex(16), 1, secrets.randbits(64), limit, 15.0)


def finish(broker: SQLiteBroker, claims: list[Claim]) -> list[bool]:
    return broker.settle(WORKER, [Settlement(claim.ref, "done") for claim in claims])


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def in_fork(body: Callable[[], object]) -> int:
    """Run `body` in a forked child; its exit code, which is 1 if it raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a test may have threads, with good reason
        pid = os.fork()
    if not pid:
        try:
            body()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- the URL ---------------------------------------------------------------------------------------------------


def test_a_relative_path_is_taken_from_the_working_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    broker = broker_for("sqlite:///tasks.db")

    assert broker.spec() == f"sqlite:///{tmp_path}/tasks.db"
    assert repr(broker) == f"SQLiteBroker('sqlite:///{tmp_path}/tasks.db')"


def test_the_spec_opens_the_same_file_whatever_is_in_its_name(tmp_path: Path) -> None:
    broker = SQLiteBroker(f"sqlite:///{tmp_path}/100%25 of%3F tasks%23.db?durability=disk&max_size=50")
    ids = put(broker)
    spec = broker.spec()
    assert spec is not None

    other = SQLiteBroker(spec)

    assert [claim.id for claim in take(other)] == ids
    assert spec.endswith("?durability=disk&max_size=50")
    assert (tmp_path / "100% of? tasks#.db").exists()
    broker.close()
    other.close()


def test_a_connection_stands_for_the_file_it_has_open(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (a)")

    broker = broker_for(connection)
    connection.close()  # it is not used itself

    assert broker.spec() == f"sqlite:///{path}"
    assert isinstance(broker, SQLiteBroker)
    ids = put(broker)
    assert [claim.id for claim in take(broker)] == ids
    broker.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT * FROM mine").fetchall() == []
    connection.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///%3Amemory%3A"])
def test_a_database_in_memory_is_refused_with_the_way_out(url: str) -> None:
    with pytest.raises(ConfigError, match="memory://"):
        SQLiteBroker(url)


def test_a_connection_in_memory_is_refused() -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(ConfigError, match="memory://"):
        broker_for(connection)
    connection.close()


@pytest.mark.parametrize(
    ("url", "error", "hint"),
    [
        ("sqlite://tasks.db", ConfigError, "did you mean 'sqlite:///tasks.db'"),
        ("sqlite:///a.db?durabilty=disk", UnknownOption, "did you mean durability"),
        ("sqlite:///a.db?colour=red", UnknownOption, "known are durability"),
        ("sqlite:///a.db?durability=full", ConfigError, "'process' .* or 'disk'"),
        ("sqlite:///a.db?max_size=big", ConfigError, "megabytes"),
        ("sqlite:///a.db?max_size=0", ConfigError, "megabytes"),
    ],
)
def test_a_wrong_url_says_what_would_be_right(url: str, error: type[Exception], hint: str) -> None:
    with pytest.raises(error, match=hint):
        SQLiteBroker(url)


# -- the place -------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    broker = SQLiteBroker(f"sqlite:///{tmp_path}/nowhere/tasks.db")

    with pytest.raises(ConfigError, match=f"no folder {tmp_path}/nowhere"):
        put(broker)

    (tmp_path / "nowhere").mkdir()
    assert put(broker)  # the same object works as soon as it can
    broker.close()


def test_a_file_that_is_no_database_is_left_alone(path: Path, broker: SQLiteBroker) -> None:
    path.write_bytes(b"Dear diary, today I did nothing at all. " * 100)

    with pytest.raises(BrokerError, match=r"not a database.*give the path"):
        put(broker)

    assert path.read_bytes().startswith(b"Dear diary")


def test_a_folder_that_can_not_be_written_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        broker = SQLiteBroker(f"sqlite:///{folder}/tasks.db")

        def body() -> None:
            if os.getuid() == 0:  # who may write anywhere
                os.setuid(65534)
            with pytest.raises(BrokerError, match=rf"{folder}/tasks.db.*must be able to write"):
                broker.check()

        assert in_fork(body) == 0


def test_a_file_with_two_names_is_refused(path: Path, broker: SQLiteBroker) -> None:
    put(broker)
    broker.close()
    os.link(path, path.parent / "second.db")

    with pytest.raises(ConfigError, match="2 hard links"):
        take(broker)


def test_a_symbolic_link_is_followed_so_that_all_lock_the_same_file(path: Path, broker: SQLiteBroker) -> None:
    link = path.parent / "link.db"
    link.symlink_to(path)

    other = SQLiteBroker(f"sqlite:///{link}")

    assert other.spec() == broker.spec()


def test_tables_of_a_later_version_are_refused(path: Path, broker: SQLiteBroker) -> None:
    put(broker)
    broker.close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE delayed_meta SET version = 99, least = 98")
    connection.close()

    with pytest.raises(BrokerError, match=r"version 99.*upgrade delayed"):
        take(broker)


def test_tables_of_a_later_version_are_used_if_that_says_so(path: Path, broker: SQLiteBroker) -> None:
    (id,) = put(broker)
    broker.close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE delayed_meta SET version = 99")

    assert [claim.id for claim in take(broker)] == [id]
    assert connection.execute("SELECT version FROM delayed_meta").fetchall() == [(99,)]
    connection.close()


MOUNTS = [
    "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw",
    r"40 27 0:30 / /mnt/my\040share rw - nfs4 server:/share rw",
    "41 40 0:31 / /mnt/my\\040share/local rw shared:5 - xfs /dev/sdb rw",
    "42 27 0:32 / /home rw - 9p host rw",
    "43 27 0:33 / /data rw - ext4 /dev/sdc rw",
    "44 27 0:34 / /data rw - fuse.sshfs server:/data rw",
    "a line of another kind",
]


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/mnt/my share", "nfs4"),
        ("/mnt/my share/a/b", "nfs4"),
        ("/mnt/my shared", "ext4"),
        ("/mnt/my share/local/a", "xfs"),
        ("/home/me", "9p"),
        ("/data", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_folder_is_that_of_the_innermost_mount(folder: str, kind: str) -> None:
    assert file_system(folder, MOUNTS) == kind


def test_a_network_file_system_is_refused_unless_allowed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [*MOUNTS, f"50 27 0:40 / {path.parent} rw - cifs //server/share rw"]
    file = SQLiteFile(str(path), mounts=lambda: mounts)

    with pytest.raises(ConfigError, match=r"network file system \(cifs\).*DELAYED_ALLOW_NETWORK_FS=1"), file.read():
        pass
    assert not path.exists()

    monkeypatch.setenv("DELAYED_ALLOW_NETWORK_FS", "1")
    with file.read() as opened:
        assert opened.db.execute("SELECT count(*) FROM delayed_task").fetchone() == (0,)
    file.close()


def test_a_removed_file_is_made_anew_and_that_is_said(
    path: Path, broker: SQLiteBroker, caplog: pytest.LogCaptureFixture
) -> None:
    put(broker)
    assert not caplog.records
    for name in ("tasks.db", "tasks.db-wal", "tasks.db-shm"):
        (path.parent / name).unlink()

    ids = put(broker)

    assert [claim.id for claim in take(broker)] == ids
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was removed while it was in use: what was in it is not in the one used now"
    ]


# -- writing ---------------------------------------------------------------------------------------------------


def test_one_stale_settlement_in_a_batch_is_refused_and_the_others_are_not(broker: SQLiteBroker) -> None:
    put(broker, 3)
    first, second, third = take(broker)
    stale = second.ref._replace(nonce=second.nonce ^ 1)

    accepted = broker.settle(
        WORKER, [Settlement(first.ref, "done"), Settlement(stale, "done"), Settlement(third.ref, "retry")]
    )

    assert accepted == [True, False, True]
    assert broker.counts("q") == (0, 1, 1, 0)


def test_an_idle_worker_takes_no_lock(path: Path, broker: SQLiteBroker) -> None:
    take(broker)
    broker.sweep("q")
    with open(f"{path}-lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert broker.claim(["q"], WORKER, 1, 1, 10, 15.0) == []
        assert broker.sweep("q").returned == 0
        assert broker.renew(WORKER, ["q"], [], 15.0) == ([], [], [])


def test_what_is_dead_during_a_grace_is_kept_as_long_as_other_letters(path: Path, broker: SQLiteBroker) -> None:
    broker.enqueue("q", [Message(broker.reserve_ids("q", 1), "module:function", b"", max_deliveries=1)], SESSION, 1)
    take(broker, worker=WORKER)
    broker.sweep("q", 0.1)
    time.sleep(0.1)  # an outage
    path.with_name("tasks.db-wake").joinpath(f"worker-{WORKER}").touch()  # as of one of which no process is left

    assert broker.sweep("q", 0.1)[:3] == (0, 1, True)

    broker.sweep("q", 0.1)
    (entry,) = broker.peek("q", "dead")
    assert entry.died < 60


def test_who_waits_too_long_for_the_lock_knows_that_nothing_was_done(
    path: Path, broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "LOCK_TIMEOUT", 0.05)
    put(broker)
    with open(f"{path}-lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(BrokerUnavailable, match="another process has kept the lock") as caught:
            take(broker)

    assert caught.value.sent is False
    assert len(take(broker)) == 1


def test_another_program_in_a_transaction_is_an_outage(
    path: Path, broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "LOCK_TIMEOUT", 0.05)
    put(broker)
    program = sqlite3.connect(path, isolation_level=None)
    program.execute("BEGIN IMMEDIATE")

    with pytest.raises(BrokerUnavailable, match="another program") as caught:
        take(broker)

    assert caught.value.sent is False
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    program.execute("ROLLBACK")
    program.close()
    assert len(take(broker)) == 1


def test_a_signal_handler_that_calls_amid_a_call_is_refused_and_harms_nothing(broker: SQLiteBroker) -> None:
    errors: list[BaseException] = []

    def handler(signum: int, frame: object) -> None:
        try:
            put(broker)
        except BrokerUnavailable as error:
            errors.append(error)

    class Interrupted(Message):
        def header(self) -> bytes:
            os.kill(os.getpid(), signal.SIGUSR1)
            return super().header()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        broker.enqueue("q", [Interrupted(id=1, func="a:b", payload=b"")], SESSION, 1)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert [error.sent for error in errors if isinstance(error, BrokerUnavailable)] == [False]
    assert [claim.id for claim in take(broker)] == [1]


# Amid a destructor it is lost, and only told of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_call_that_a_signal_ends_leaves_nothing_locked(path: Path, broker: SQLiteBroker) -> None:
    """As a task does whose time is up, or Ctrl-C, at whatever moment."""

    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    put(broker)
    other = sqlite3.connect(path, timeout=0.0, isolation_level=None)
    lock = os.open(f"{path}-lock", os.O_RDWR)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            with contextlib.suppress(Interrupt):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.002), 1.0)  # again, if it is lost
                while True:
                    put(broker)
            signal.setitimer(signal.ITIMER_REAL, 0)
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        other.close()
        os.close(lock)

    thread = threading.Thread(target=put, args=(broker,), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_a_call_that_a_signal_ends_while_another_program_writes_leaves_nothing_locked(
    path: Path, broker: SQLiteBroker
) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    put(broker)
    other = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # SQLite goes on waiting, and is heard of when it has begun
        release.start()
        with pytest.raises(Interrupt):
            put(broker)
    finally:
        signal.signal(signal.SIGALRM, before)
        release.join()

    other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    other.close()


def test_the_log_is_copied_into_the_file_and_stays_small(path: Path, broker: SQLiteBroker) -> None:
    largest = 0
    for _ in range(12):
        put(broker, 100, b"x" * 10_000)
        largest = max(largest, os.stat(f"{path}-wal").st_size)
        assert all(finish(broker, take(broker)))

    assert largest < 8 << 20  # 12 MB went through it
    assert path.stat().st_size > 500_000


def test_a_reader_in_a_long_transaction_stops_nobody(path: Path, broker: SQLiteBroker) -> None:
    put(broker)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM delayed_task").fetchall()

    started = time.monotonic()
    for _ in range(10):
        put(broker, 100, b"x" * 10_000)

    assert time.monotonic() - started < 4.0  # none of them waited for the reader
    assert os.stat(f"{path}-wal").st_size > 8 << 20
    reader.close()
    for _ in range(10):
        put(broker, 100, b"x" * 10_000)
    assert os.stat(f"{path}-wal").st_size < 12 << 20


# -- a full disk -----------------------------------------------------------------------------------------------


def test_a_full_file_refuses_what_is_new_and_finishes_what_it_has(path: Path) -> None:
    broker = SQLiteBroker(f"sqlite:///{path}?max_size=1")
    stored: list[int] = []
    with pytest.raises(BrokerFull, match="nothing was stored") as caught:
        for _ in range(1000):
            stored += put(broker, 10, b"x" * 3000)

    assert caught.value.sent is False
    assert broker.counts("q").ready == len(stored) > 100
    claims = take(broker, 1000)
    assert [claim.id for claim in claims] == stored
    assert len(broker.renew(claims[0].ref.queue, ["q"], [], 15.0).held) == 0
    assert all(finish(broker, claims))
    assert put(broker, 10, b"x" * 3000)  # there is room again
    broker.close()


def test_enqueue_leaves_some_of_the_disk_to_what_is_stored(
    broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = broker.reserve_ids("q", 2)
    broker.enqueue("q", [Message(id=first, func="a:b", payload=b"")], SESSION, 1)
    second = [Message(id=first + 1, func="a:b", payload=b"")]
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1000, f_frsize=4096))

        with pytest.raises(BrokerFull, match="3 MB left"):
            broker.enqueue("q", second, SESSION, 2)
        assert all(finish(broker, take(broker)))
        assert any("3 MB left" in warning for warning in broker.check())

    broker.enqueue("q", second, SESSION, 2)  # the very same request
    assert [claim.id for claim in take(broker)] == [first + 1]
    assert broker.check() == []


def test_room_that_tasks_have_left_in_the_file_is_used_again_on_a_full_disk(
    broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BrokerFull), monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=3500, f_frsize=4096))
        put(broker)
    put(broker, 30, b"x" * 100_000)
    assert all(finish(broker, take(broker)))

    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=3500, f_frsize=4096))
        stored = put(broker, 5, b"x" * 100_000)
        with pytest.raises(BrokerFull, match="13 MB left"):
            for _ in range(10):
                stored += put(broker, 5, b"x" * 100_000)

    assert [claim.id for claim in take(broker)] == stored


def test_large_tasks_take_little_room_in_the_log_at_a_time(path: Path, broker: SQLiteBroker) -> None:
    """However many are claimed, lost or ended: on a full disk enqueue has left 16 MB, and the queue has to drain."""
    stored = [put(broker, 1, b"x" * 1_000_000)[0] for _ in range(20)]
    sizes = [os.stat(f"{path}-wal").st_size]

    def grown(answer: Any) -> Any:
        sizes.append(os.stat(f"{path}-wal").st_size)
        return answer

    claimed: list[int] = []
    while claims := grown(broker.claim(["q"], WORKER, len(claimed) + 1, 7, 100, 0.001)):
        claimed += [claim.id for claim in claims]
    returned = []
    while swept := grown(broker.sweep("q", 15.0)).returned:
        returned.append(swept)
    while claims := take(broker):
        assert all(grown(finish(broker, claims)))

    assert claimed == stored
    assert (sum(returned), max(returned) < 10) == (20, True)
    assert broker.counts("q") == (0, 0, 0, 0)
    assert max(after - before for before, after in pairwise(sizes)) < 12 << 20


def test_a_limit_on_file_sizes_is_a_full_disk(path: Path) -> None:
    """The operating system refuses a write in the middle of a transaction."""
    script = """
        import resource, sys
        from tests.brokers.test_sqlite import *
        broker = SQLiteBroker(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
        stored = 0
        try:
            while True:
                stored += len(put(broker, 10, b"x" * 3000))
        except BrokerFull as error:
            print(stored, error.sent)
    """

    printed = run(script, f"sqlite:///{path}")

    stored, sent = printed.split()
    assert sent == "False"
    broker = SQLiteBroker(f"sqlite:///{path}")
    assert broker.counts("q").ready == int(stored) > 100
    assert integrity(path) == "ok"
    broker.close()


# -- forks and ends --------------------------------------------------------------------------------------------


def test_a_fork_shares_nothing(path: Path, broker: SQLiteBroker) -> None:
    """SQLite forbids to carry a connection over a fork: the child would take its parent's locks for its own."""
    put(broker)
    pids = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            try:
                for _ in range(50):
                    put(broker)
                broker.close()
            finally:
                os._exit(0)
        pids.append(pid)
    for _ in range(50):
        put(broker)
    for pid in pids:
        os.waitpid(pid, 0)

    assert broker.counts("q").ready == 251
    broker.close()
    assert not (path.parent / "tasks.db-wal").exists()  # the last to close found no other connection
    assert integrity(path) == "ok"


def test_a_child_does_not_close_the_file_for_its_parent(path: Path, broker: SQLiteBroker) -> None:
    """A child's connection is its own: when the parent leaves, the log that the child writes stays."""
    put(broker)
    go_read, go_write = os.pipe()
    done_read, done_write = os.pipe()
    pid = os.fork()
    if not pid:
        put(broker)
        os.write(done_write, b".")
        os.read(go_read, 1)
        put(broker)
        os.kill(os.getpid(), signal.SIGKILL)  # without closing
    os.read(done_read, 1)

    broker.close()

    assert (path.parent / "tasks.db-wal").exists()
    os.write(go_write, b".")
    os.waitpid(pid, 0)
    assert broker.counts("q").ready == 3
    for descriptor in (go_read, go_write, done_read, done_write):
        os.close(descriptor)


def test_a_fork_amid_the_work_of_other_threads_gives_a_working_child(broker: SQLiteBroker) -> None:
    put(broker)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            put(broker)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        codes = [in_fork(lambda: put(broker)) for _ in range(10)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    assert codes == [0] * 10


@pytest.mark.parametrize("ending", ["broker.close()", "del broker", "pass"])
def test_the_end_of_a_process_is_silent_and_leaves_no_log(path: Path, ending: str) -> None:
    script = f"""
        import sys
        from tests.brokers.test_sqlite import *
        broker = SQLiteBroker(sys.argv[1])
        put(broker)
        broker.wait(["q"], 0.0)
        {ending}
    """

    assert run(script, f"sqlite:///{path}") == ""
    assert not (path.parent / "tasks.db-wal").exists()


def test_an_object_that_was_closed_opens_the_file_again(broker: SQLiteBroker) -> None:
    ids = put(broker)
    broker.close()

    claims = take(broker)

    assert [claim.id for claim in claims] == ids


def test_descriptors_do_not_pile_up(broker: SQLiteBroker) -> None:
    def use() -> None:
        put(broker)
        broker.wait(["q"], 0.0)
        broker.close()

    use()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        use()

    assert len(os.listdir("/proc/self/fd")) == before


# -- the clock -------------------------------------------------------------------------------------------------


def test_after_a_reboot_with_a_clock_set_back_time_goes_on(path: Path, broker: SQLiteBroker) -> None:
    put(broker)
    broker.close()
    tomorrow = int((time.time() + 86400) * 1000)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE delayed_meta SET boot = 'the boot before', seen = ?", (tomorrow,))
    connection.close()

    assert broker.reserve_ids("q", 1) > tomorrow << 11


# -- wake-ups --------------------------------------------------------------------------------------------------


WAITER = """
    import sys
    from tests.brokers.test_sqlite import *
    broker = SQLiteBroker(sys.argv[1])
    seq = 0
    print("here", flush=True)
    while True:
        broker.wait(["other", "q"], 10.0)
        seq += 1
        for claim in broker.claim(["q"], sys.argv[2], seq, seq, 1, 15.0):
            broker.settle(sys.argv[2], [Settlement(claim.ref, "done")])
            print(time.monotonic(), flush=True)
"""


@pytest.fixture
def waiters(broker: SQLiteBroker) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts processes that wait for tasks, take one at a time, and print when they did."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = python(WAITER, str(broker.spec()), secrets.token_hex(16))
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_an_enqueue_wakes_a_sleeping_process_within_milliseconds(
    broker: SQLiteBroker, waiters: Callable[[], subprocess.Popen[str]]
) -> None:
    process = waiters()
    assert process.stdout is not None
    delays = []
    for _ in range(9):
        time.sleep(0.05)  # gives it the time to fall asleep; if it does not, that is quicker still
        started = time.monotonic()
        put(broker)
        delays.append(float(process.stdout.readline()) - started)

    assert statistics.median(delays) < 0.1  # by itself it looks once a second


def test_one_batch_wakes_one_sleeper_after_the_other(
    broker: SQLiteBroker, waiters: Callable[[], subprocess.Popen[str]]
) -> None:
    processes = [waiters() for _ in range(3)]

    started = time.monotonic()
    put(broker, 300)
    eventually(lambda: broker.counts("q") == (0, 0, 0, 0), 5.0)

    assert time.monotonic() - started < 5.0
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline()


def test_a_sleeper_wakes_when_a_scheduled_task_is_due(broker: SQLiteBroker) -> None:
    first = broker.reserve_ids("q", 1)
    broker.enqueue("q", [Message(id=first, func="a:b", payload=b"", delay=0.3)], SESSION, 1)
    broker.wait(["q"], 0.0)

    started = time.monotonic()
    while not (claims := take(broker)):
        broker.wait(["q"], 10.0)

    assert [claim.id for claim in claims] == [first]
    assert 0.2 < time.monotonic() - started < 0.9


def test_wake_and_close_end_a_wait_at_once(broker: SQLiteBroker) -> None:
    ends: list[Callable[[], None]] = [lambda: broker.wake(["q"]), broker.close]
    for end in ends:
        waiting = threading.Event()

        def wait(waiting: threading.Event = waiting) -> None:
            waiting.set()
            broker.wait(["q"], 30.0)

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait()
        time.sleep(0.05)  # let it fall asleep
        started = time.monotonic()
        end()
        thread.join(10.0)

        assert not thread.is_alive()
        assert time.monotonic() - started < 0.5


def test_without_fifos_it_still_wakes_soon(broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "mkfifo")
    other = SQLiteBroker(str(broker.spec()))
    thread = threading.Timer(0.1, put, [other])
    thread.start()

    started = time.monotonic()
    broker.wait(["q"], 10.0)

    assert time.monotonic() - started < 0.9
    thread.join()
    other.close()


def test_an_idle_wait_costs_next_to_nothing(broker: SQLiteBroker) -> None:
    broker.wait(["q"], 0.0)
    before = time.process_time()

    broker.wait(["q"], 2.2)  # looks twice by itself

    assert time.process_time() - before < 0.022


# -- all at once -----------------------------------------------------------------------------------------------

PRODUCER = """
    import sys
    from tests.brokers.test_sqlite import *
    url, log = sys.argv[1:]
    broker, log = SQLiteBroker(url), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    session = secrets.token_hex(16)
    for seq in range(1, 150):
        n = random.randint(1, 40)
        first = broker.reserve_ids("q", n)
        messages = [Message(id=first + i, func="a:b", payload=b"x" * 200) for i in range(n)]
        broker.enqueue("q", messages, session, seq)
        os.write(log, b"".join(b"%d\\n" % message.id for message in messages))
        time.sleep(random.random() * 0.02)
"""

CONSUMER = """
    import sys
    from tests.brokers.test_sqlite import *
    url, log, stop = sys.argv[1:]
    broker, log = SQLiteBroker(url), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    worker = secrets.token_hex(16)
    seq, settlements = 0, []
    while not (os.path.exists(stop) and not settlements):
        seq += 1
        accepted, claims = broker.settle_and_claim(
            worker, settlements, ["q"], seq, secrets.randbits(64), random.randint(1, 64), 2.0
        )
        done = [s.ref.id for s, yes in zip(settlements, accepted) if yes]
        lines = [b"done %d\\n" % id for id in done] + [b"claimed %d\\n" % claim.id for claim in claims]
        os.write(log, b"".join(lines))
        settlements = [Settlement(claim.ref, "done") for claim in claims]
        if not claims:
            broker.sweep("q", 2.0)
            broker.wait(["q"], 0.2)
"""


def test_a_dozen_processes_of_which_some_are_killed_lose_and_double_nothing(path: Path, tmp_path: Path) -> None:
    url, stop = f"sqlite:///{path}", tmp_path / "stop"
    logs: dict[str, list[Path]] = {"producer": [], "consumer": []}
    running: list[tuple[str, subprocess.Popen[str]]] = []

    def start(kind: str) -> None:
        log = tmp_path / f"{kind}{len(logs[kind])}.log"
        logs[kind].append(log)
        log.touch()
        script, more = (PRODUCER, []) if kind == "producer" else (CONSUMER, [str(stop)])
        running.append((kind, python(script, url, str(log), *more)))

    for _ in range(6):
        start("producer")
        start("consumer")
    deadline = time.monotonic() + 4.0
    killed = 0
    while time.monotonic() < deadline:
        time.sleep(random.random() * 0.4)
        kind, process = victim = random.choice(running)
        if process.poll() is None:
            running.remove(victim)
            process.kill()
            killed += 1
            assert process.communicate()[1] == ""
            start(kind)
    stop.touch()
    for _, process in running:
        assert process.communicate(timeout=20)[1] == ""  # nobody saw an error

    broker = SQLiteBroker(url)
    seen = Counter[str]()
    claimed: set[str] = set()
    for log in logs["consumer"]:
        for line in log.read_text().splitlines():
            word, id = line.split()
            if word == "done":
                seen[id] += 1
            else:
                claimed.add(id)

    def drained() -> bool:
        claims = broker.claim(["q"], WORKER, int(time.monotonic() * 1e6), secrets.randbits(64), 1000, 15.0)
        for claim, accepted in zip(claims, finish(broker, claims), strict=True):
            seen[str(claim.id)] += accepted
        broker.sweep("q", 1.0)
        return broker.counts("q") == (0, 0, 0, 0)

    eventually(drained)
    stored = {id for log in logs["producer"] for id in log.read_text().splitlines()}

    assert killed > 3
    assert len(stored) > 2000
    assert [id for id, times in seen.items() if times > 1] == []
    unsure = stored - set(seen)  # of consumers that were killed after a settlement and before they could log it
    assert unsure <= claimed
    assert len(unsure) <= 64 * killed
    broker.close()
    assert integrity(path) == "ok"
    assert not Path(f"{path}-wal").exists()


# -- helpers ---------------------------------------------------------------------------------------------------


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(script), *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, *arguments: str) -> str:
    """What a Python script prints; it must end well and without a warning."""
    process = python(script, *arguments)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    return out


def integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


# -- answers -------------------------------------------------------------------------------------------------------


def test_a_file_of_the_first_version_is_brought_up_to_date(path: Path, broker: SQLiteBroker) -> None:
    (id,) = put(broker)
    broker.close()
    db = sqlite3.connect(path)
    db.executescript(
        "DROP TABLE delayed_key; DROP TABLE delayed_answer; ALTER TABLE delayed_queue DROP COLUMN dead_most;"
        "ALTER TABLE delayed_queue DROP COLUMN dead_age; ALTER TABLE delayed_task DROP COLUMN notes;"
        "DROP INDEX delayed_task_fair; DROP INDEX delayed_task_tenant; ALTER TABLE delayed_task DROP COLUMN tenant;"
        "DROP TABLE delayed_once; ALTER TABLE delayed_queue DROP COLUMN once_from;"
        "ALTER TABLE delayed_queue DROP COLUMN outage; ALTER TABLE delayed_meta DROP COLUMN least;"
        "UPDATE delayed_meta SET version = 1"
    )
    db.close()

    (claim,) = take(broker)
    assert broker.settle("w", [Settlement(claim.ref, "done", answer=Answer(b"kept", 100.0))]) == [True]

    assert broker.get_results("q", [id]) == {id: b"kept"}
    db = sqlite3.connect(path)
    assert db.execute("SELECT version FROM delayed_meta").fetchall() == [(sqlite_open.SCHEMA_VERSION,)]
    db.close()


def test_the_fifo_of_a_listener_that_was_killed_is_removed(path: Path, broker: SQLiteBroker) -> None:
    folder = path.with_name("tasks.db-wake")
    listener = broker.listen("q")
    (name,) = [entry.name for entry in folder.iterdir() if entry.name.startswith("answers-")]
    listener.close()
    assert not (folder / name).exists()
    os.mkfifo(folder / name)  # as a process leaves it that has no time to say goodbye

    broker.put_result("q", 1, Answer(b"answer", 10.0))

    assert not (folder / name).exists()


def test_answers_whose_time_is_over_take_no_space(path: Path, broker: SQLiteBroker) -> None:
    for id in range(10):
        broker.put_result("q", id, Answer(b"answer", 0.01))
    broker.put_result("q", 10, Answer(b"answer", 100.0))
    time.sleep(0.02)

    broker.sweep("q")

    db = sqlite3.connect(path)
    assert db.execute("SELECT id FROM delayed_answer").fetchall() == [(10,)]
    db.close()


def test_values_whose_time_is_over_take_no_space(path: Path, broker: SQLiteBroker) -> None:
    for number in range(10):
        broker.put_key("q", f"short:{number}", b"value", ttl=0.01)
    broker.put_key("q", "long", b"value", ttl=100.0)
    broker.put_key("q", "ever", b"value")
    time.sleep(0.02)

    broker.sweep("q")

    db = sqlite3.connect(path)
    assert db.execute("SELECT name FROM delayed_key ORDER BY name").fetchall() == [("ever",), ("long",)]
    db.close()
