"""The fork server as its monitor sees it: how it is started, talked to, looked after, and replaced."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator

from delayed.logger import logger
from delayed.worker import channel, process
from delayed.worker.channel import Control
from delayed.worker.config import Config
from delayed.worker.orphans import MARK
from delayed.worker.process import now
from delayed.worker.silence import Silence

PAUSE = 0.5  # seconds from one start of a fork server that fails to the next
TRIES = 5  # starts that may fail in a row at the beginning
PATIENCE = 10.0  # seconds a fork server may take to start
SILENCE_MAX = 5.0  # seconds that a fork server may be silent
FAREWELL = 5.0  # seconds that it has to leave


class Server:
    """The fork server of a run, and each that takes its place.

    Args:
        poller: where its monitor listens.
        silence: of the fork server, which tells whether it is frozen.

    Attributes:
        fd: descriptor on which its messages come; -1 while there is none.
        ready: whether it forks children.
        failed: whether none of the first ones has started, and no more are tried.
    """

    def __init__(self, poller: select.poll, silence: Silence) -> None:
        self.fd = -1
        self.ready = False
        self.failed = False
        self._poller = poller
        self._silence = silence
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._worked = False  # whether any of this run was ever ready
        self._failures = 0

    def start(self, config: Config) -> None:
        """Start one, which is told all that `config` says, and its end of their channel."""
        mine, theirs = channel.pair()
        self._started = now()
        self.ready = False
        config = config._replace(control=theirs.fileno(), path=[entry or os.getcwd() for entry in sys.path])
        file = process.anonymous_file("delayed-config")
        os.write(file, config.dump())
        inherited = [file, config.control, config.board, config.spool, config.life, config.life_write]
        inherited += [fd for fds in config.seats for fd in fds]
        inherited += config.presence
        # A new interpreter, not a fork of this one: it has none of its threads, locks, sockets and memory.
        program = f"import sys; sys.path[:] = {config.path!r}; from delayed.worker.forkserver import main; main({file})"
        arguments = [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", program]  # type: ignore[attr-defined]
        environ = {**os.environ, MARK: config.worker}
        self._process = subprocess.Popen(arguments, pass_fds=inherited, stdin=subprocess.DEVNULL, env=environ)
        os.close(file)
        theirs.close()
        mine.setblocking(False)
        self._control = mine
        self.fd = mine.fileno()
        self._poller.register(mine, select.POLLIN)

    @property
    def pid(self) -> int:
        """Of the last one; 0 before there is any."""
        return self._process.pid if self._process is not None else 0

    def may_start(self, at: float) -> bool:
        """Whether it is time to start the next one."""
        return at >= self._started + PAUSE

    def send(self, control: Control) -> bool:
        """Tell it something; False if it does not hear it."""
        if self._control is None:
            return False
        try:
            channel.send_control(self._control, control)
        except BlockingIOError:  # it does not read its orders any more
            self.kill()
            return False
        except (BrokenPipeError, ConnectionResetError):
            return False  # its end of file is on its way
        return True

    def receive(self) -> Iterator[Control | None]:
        """What it has said; None at its end, for which :meth:`bury` is to be called."""
        while self._control is not None:
            try:
                control = channel.receive_control(self._control)
            except BlockingIOError:
                return
            except ConnectionResetError:
                control = None
            except channel.BadFrame as error:
                logger.error("the fork server says what it should not (%s), and is killed", error)
                self.kill()
                return
            if control is None:
                yield None
                return
            if control.kind == channel.READY:
                self.ready = self._worked = True
            yield control

    def bury(self) -> int:
        """It is dead: how it ended, as :attr:`subprocess.Popen.returncode` has it."""
        assert self._control is not None and self._process is not None
        self._poller.unregister(self._control)
        self._control.close()
        self._control = None
        self.fd = -1
        code = self._process.wait()
        if not self.ready and not self._worked:
            self._failures += 1
            self.failed = self._failures >= TRIES
        return code

    def mind(self, at: float, *, counts: bool) -> None:
        """Kill it if it does not start, or is frozen; `counts`: whether it has anything to do."""
        if self._process is None:
            return
        if not self.ready and at > self._started + PATIENCE:
            logger.error("the fork server does not start; trying another")
            self.kill()
        if self._silence.seconds(at, counts=self.ready and counts) > SILENCE_MAX:
            logger.error("the fork server is frozen, and killed; starting another")
            self.kill()

    def kill(self) -> None:
        """End it, if there is one."""
        if self._process is not None:
            self._process.kill()

    def leave(self) -> None:
        """Leave it alone, as if its monitor had been killed."""
        if self._control is not None:
            self._control.close()

    def close(self) -> None:
        """Tell it to go; the monitor listens no more. To be followed by :meth:`wait`."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                channel.send_control(self._control, Control(channel.BYE))
            self._control.close()

    def wait(self) -> bool:
        """Wait until it is gone; whether it went by itself, and left nobody."""
        if self._process is None:
            return True
        try:
            return self._process.wait(FAREWELL) == 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
