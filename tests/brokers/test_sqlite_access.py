"""Who may read and write the file of the SQLite broker, and what lies beside it."""

from __future__ import annotations

import grp
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from delayed.brokers.sqlite import SQLiteBroker
from delayed.errors import BrokerError
from delayed.message import Answer, Message

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def broker(path: Path) -> Iterator[SQLiteBroker]:
    broker = SQLiteBroker(f"sqlite:///{path}")
    yield broker
    broker.close()


def put(broker: SQLiteBroker) -> None:
    id = broker.reserve_ids("q", 1)
    broker.enqueue("q", [Message(id=id, func="module:function", payload=b"")], secrets.token_hex(16), 1)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_what_is_created_is_for_its_owner_only(path: Path, broker: SQLiteBroker, umask: int) -> None:
    before = os.umask(umask)
    try:
        put(broker)
        broker.wait(["q"], 0.0)
        listener = broker.listen("q")
    finally:
        os.umask(before)

    modes = {found.name: mode(found) for found in path.parent.rglob("*")}
    assert modes.pop("tasks.db-wake") == 0o700
    names = {"tasks.db", "tasks.db-wal", "tasks.db-shm", "tasks.db-lock", "1"}
    assert names < set(modes)
    assert len(modes) == len(names) + 1  # the listener's
    assert set(modes.values()) == {0o600}
    listener.close()


def test_a_file_that_is_there_keeps_its_mode(path: Path, broker: SQLiteBroker) -> None:
    path.touch()
    path.chmod(0o640)

    put(broker)

    assert mode(path) == mode(path.with_name("tasks.db-wal")) == 0o640


# -- links ---------------------------------------------------------------------------------------------------------


def test_a_link_in_the_place_of_the_lock_is_not_followed(path: Path, broker: SQLiteBroker, tmp_path: Path) -> None:
    target = tmp_path / "target"
    path.with_name("tasks.db-lock").symlink_to(target)

    with pytest.raises(BrokerError, match=r"tasks\.db-lock is a symbolic link, .* remove it"):
        put(broker)

    assert not target.exists()


def test_a_link_in_the_place_of_the_folder_for_wake_ups_is_not_followed(
    path: Path, broker: SQLiteBroker, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    path.with_name("tasks.db-wake").symlink_to(target)

    put(broker)
    broker.wait(["q"], 10.0)  # it looks by itself

    assert list(target.iterdir()) == []


def test_a_link_in_the_place_of_a_wake_up_is_not_followed(path: Path, broker: SQLiteBroker, tmp_path: Path) -> None:
    target = tmp_path / "target"
    os.mkfifo(target)
    end = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
    folder = path.with_name("tasks.db-wake")
    folder.mkdir()
    (folder / "1").symlink_to(target)

    put(broker)

    assert os.read(end, 1) == b""  # nobody has opened it for writing, nor written
    os.close(end)


@pytest.mark.parametrize("link", [True, False], ids=["link", "file"])
def test_what_is_no_listener_is_not_written_to(path: Path, broker: SQLiteBroker, tmp_path: Path, link: bool) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    folder = path.with_name("tasks.db-wake")
    folder.mkdir()
    (os.symlink if link else os.link)(target, folder / "answers-1-0")

    put(broker)
    broker.put_result("q", 1, Answer(b"answer", 60.0))

    assert target.read_text() == "precious"


# -- warnings ------------------------------------------------------------------------------------------------------


def test_nothing_is_said_where_nobody_else_can_write(path: Path, broker: SQLiteBroker) -> None:
    put(broker)
    path.chmod(0o644)
    path.parent.chmod(0o755)

    assert broker.check() == []


def test_a_file_that_everybody_can_write_is_warned_of(path: Path, broker: SQLiteBroker) -> None:
    put(broker)
    path.chmod(0o606)

    (warning,) = broker.check()
    assert f"{path} can be written by everybody" in warning
    assert f"chmod go-w {path}" in warning


def test_so_is_what_sqlite_keeps_beside_it(path: Path, broker: SQLiteBroker) -> None:
    put(broker)
    path.with_name("tasks.db-wal").chmod(0o602)

    (warning,) = broker.check()
    assert f"{path}-wal can be written by everybody" in warning


@pytest.mark.parametrize("bits", [0o777, 0o1777], ids=oct)
def test_a_folder_that_everybody_can_write_is_warned_of(path: Path, broker: SQLiteBroker, bits: int) -> None:
    """The sticky bit keeps others from replacing the file, and not from putting a log beside it."""
    put(broker)
    path.parent.chmod(bits)

    (warning,) = broker.check()
    assert f"the folder {path.parent} can be written by" in warning
    assert "everybody, who can put another file in the place" in warning


@pytest.mark.parametrize(
    ("name", "members", "told"),
    [("", [], False), ("", ["eve"], True), ("staff", [], True)],
    ids=["of its owner alone", "with a member", "of many"],
)
def test_a_group_that_can_write_is_named_unless_it_is_its_owners_alone(
    path: Path, broker: SQLiteBroker, name: str, members: list[str], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(broker)
    path.chmod(0o660)
    owner = SimpleNamespace(pw_name="alice", pw_gid=path.stat().st_gid)
    monkeypatch.setattr("pwd.getpwuid", lambda number: owner)
    group = SimpleNamespace(gr_gid=path.stat().st_gid, gr_name=name or "alice", gr_mem=members)
    monkeypatch.setattr(grp, "getgrgid", lambda number: group)

    assert [f"written by the group {group.gr_name}," in warning for warning in broker.check()] == [True] * told


def test_another_owner_is_warned_of(path: Path, broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    put(broker)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, -1)
    else:
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)

    assert f"{path} can be written by its owner" in broker.check()[0]


def test_a_worker_says_so_when_it_starts(path: Path, broker: SQLiteBroker) -> None:
    put(broker)
    broker.purge("q")
    path.chmod(0o666)
    command = [sys.executable, "-m", "delayed", "worker", "--burst", "--url", f"sqlite:///{path}"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert done.returncode == 0
    assert f"{path} can be written by" in done.stderr
