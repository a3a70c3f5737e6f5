"""Who may write a SQLite file: what is created is for its owner alone, and where others may write, it is told."""

from __future__ import annotations

import errno
import os
import stat

from delayed.errors import BrokerError

_CONSEQUENCE = "and so run code as this user where workers take pickle"


def create(path: str) -> int:
    """Open a file; where there is none, create it for its owner only, whatever the umask.

    Raises:
        BrokerError: When it is a symbolic link: whoever may write the folder could lead us anywhere by one.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        file = os.open(path, flags | os.O_EXCL, 0o600)
    except FileExistsError:
        return _open(path, flags)
    if stat.S_IMODE(os.fstat(file).st_mode) & 0o600 != 0o600:
        os.fchmod(file, 0o600)
    return file


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise BrokerError(f"{path} is a symbolic link, which is not followed: remove it") from error


def warnings(path: str) -> list[str]:
    """A sentence for the file, or what SQLite keeps beside it, and one for its folder, if others than this user and
    root may write it.
    """
    found = []
    for place in (path, path + "-wal", path + "-shm"):
        who = writers(place)
        if who:
            found.append(f"{place} can be written by {who}, {_CONSEQUENCE}: chmod go-w {place}, or chown it")
            break
    folder = os.path.dirname(path)
    who = writers(folder)
    if who:
        found.append(
            f"the folder {folder} can be written by {who}, who can put another file in the place of {path}, "
            f"{_CONSEQUENCE}: keep it in a folder of its own (chmod 700)"
        )
    return found


def writers(path: str) -> str:
    """Who may write `path`, other than this user and root, in words; "" if nobody, or if there is no such file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return ""
    who = []
    if status.st_uid not in (0, os.geteuid()):
        who.append(f"its owner {_user(status.st_uid)}")
    if status.st_mode & stat.S_IWGRP and not _is_private(status):
        who.append(f"the group {_group(status.st_gid)}")
    if status.st_mode & stat.S_IWOTH:
        who.append("everybody")
    return " and ".join(who)


def _is_private(status: os.stat_result) -> bool:
    """Whether the group is its owner's alone, as many systems make one for each user."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(status.st_gid), pwd.getpwuid(status.st_uid)
    except KeyError:
        return False
    return user.pw_gid == group.gr_gid and user.pw_name == group.gr_name and set(group.gr_mem) <= {user.pw_name}


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    import grp

    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
