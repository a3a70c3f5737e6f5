"""Verdicts: how a run ended, in words and as data."""

from __future__ import annotations

import json
import signal
from typing import Any, NamedTuple

from delayed.errors import DELAY_MAX

# Codes of the outcomes that a child reports itself; 0 is left for "none yet".
(
    RETURNED,
    RAISED,
    TIMED_OUT,
    STOPPED,
    UNDECODABLE,
    UNKNOWN_FUNCTION,
    BAD_ARGUMENTS,
    EXITED,
    # ... and of those that only its guardians can tell:
    KILLED,
    LOST,
    # ... and returned, having ended its claim itself, in its own transaction:
    COMMITTED,
    # ... and not run, because the task has limits that this kind of worker can't keep:
    REFUSED,
    # ... and what a task asked for itself:
    POSTPONED,
    RETRIED,
    GIVEN_BACK,
    REJECTED,
    # ... and stopped because somebody cancelled it:
    CANCELLED,
    # ... and not run, because its queue does not allow its function:
    NOT_ALLOWED,
    # ... and returned, with an answer that is to be kept (on the board only):
    KEPT,
    # ... and not run, because its time to begin was over:
    EXPIRED,
    # ... and not run, because one has failed that it was to run after:
    BLOCKED,
) = range(1, 22)

# Whether a failed run is repeated, as far as its child could tell by what was raised: it could not; as often and as
# soon as the policy says by numbers; after the delay that a function of the user's named; not at all.
UNDECIDED, USUAL, AGAIN, FINAL = range(4)

DUMP_MAX = 49152  # bytes of a verdict on its way to another process

KINDS = {
    RETURNED: "returned",
    RAISED: "raised",
    TIMED_OUT: "timed out",
    STOPPED: "stopped",
    UNDECODABLE: "undecodable",
    UNKNOWN_FUNCTION: "unknown function",
    BAD_ARGUMENTS: "bad arguments",
    EXITED: "exited",
    KILLED: "killed",
    LOST: "lost",
    COMMITTED: "returned",
    REFUSED: "refused",
    POSTPONED: "postponed",
    RETRIED: "retried",
    GIVEN_BACK: "given back",
    REJECTED: "rejected",
    CANCELLED: "cancelled",
    NOT_ALLOWED: "not allowed",
    KEPT: "returned",
    EXPIRED: "expired",
    BLOCKED: "not run",
}
# Not told of as a failure to handlers and hooks: nothing is wrong with the task, or somebody wanted its end.
NO_FAILURES = frozenset({RETURNED, COMMITTED, STOPPED, LOST, POSTPONED, GIVEN_BACK, CANCELLED, EXPIRED})


class Verdict(NamedTuple):
    """How a run of a task ended.

    Attributes:
        code: one of the constants of this module; `kind` is its name.
        type: for ``raised``: the exception's type, ``package.module.Class``.
        text: the exception's text, or what else there is to say.
        traceback: the formatted traceback, "" if there is none.
        stack: where the task stood when it was stopped or crashed (faulthandler's dump), "" if unknown.
        signal: the number of the signal that killed the child, else 0.
        by_us: whether that signal came from the worker.
        core: whether a core was dumped.
        exit_code: for ``exited``: the exit code.
        out_of_memory: whether the kernel killed the child for want of memory.
        wall: seconds the run took.
        cpu: seconds of CPU that it used.
        rss: peak memory of its process in bytes; 0 if unknown.
        timeout: the task's limit in seconds, None if it had none.
        limit: the limit of CPU or memory that ended it, or that it may have failed for, in words; "" if there is none.
        arguments: those of the task, shortened, such as ``(1, 'two')``, if its worker logs them; else "".
        delay: seconds until the next run, as the task asked for it or its child has worked it out; None if there is
            none, or if the monitor is to do that.
        decision: of a failed run: what its retry policy says of the error; one of the constants of this module.
    """

    code: int
    type: str = ""
    text: str = ""
    traceback: str = ""
    stack: str = ""
    signal: int = 0
    by_us: bool = False
    core: bool = False
    exit_code: int = 0
    out_of_memory: bool = False
    wall: float = 0.0
    cpu: float = 0.0
    rss: int = 0
    timeout: float | None = None
    limit: str = ""
    delay: float | None = None
    decision: int = UNDECIDED
    arguments: str = ""

    @property
    def kind(self) -> str:
        return KINDS.get(self.code, f"unknown outcome {self.code}")

    @property
    def ok(self) -> bool:
        return self.code in (RETURNED, COMMITTED, KEPT)

    @property
    def by_wish(self) -> bool:
        """Whether the task asked for it."""
        return self.code in (POSTPONED, RETRIED, GIVEN_BACK, REJECTED)

    @property
    def places(self) -> list[str]:
        """The traceback and the stack, as far as there are any."""
        return [text for text in (self.traceback.rstrip(), self.stack.rstrip()) if text]

    def __str__(self) -> str:
        """The verdict in one sentence, without traceback and stack."""
        if not self.wall and self.code in (EXPIRED, BLOCKED, LOST):  # it took no time, or nobody knows how much
            return printable(self._what())
        return printable(f"{self._what()} after {self.wall:.3g} s{self._used()}")

    def _what(self) -> str:
        why = f"; {self.limit}" if self.limit else ""
        match self.code:
            case 2:  # RAISED
                return f"raised {self.type}" + (f": {_first_line(self.text)}" if self.text else "") + why
            case 3:  # TIMED_OUT
                how = f", and was killed by signal {signal_name(self.signal)}" if self.signal else ""
                if self.limit:
                    return self.limit + how
                return f"timed out (limit {self.timeout:g} s){how}" if self.timeout else f"timed out{how}"
            case 4:
                return "stopped: " + (_first_line(self.text) or "the worker shuts down")
            case 5 | 6 | 7 | 12 | 18 | 21:
                return f"{self.kind}: {_first_line(self.text)}"
            case 8:
                return f"exited with {self.exit_code}" + (f": {_first_line(self.text)}" if self.text else "") + why
            case 9:  # KILLED
                if self.out_of_memory:
                    return f"killed by signal {signal_name(self.signal)}: out of memory"
                if self.limit and self.by_us:
                    return f"killed by its worker: {self.limit}"
                by = "by its worker" if self.by_us else "not by its worker"
                core = " (core dumped)" if self.core else ""
                return f"killed by signal {signal_name(self.signal)}, {by}{core}{why}"
            case 13 | 14 | 15 | 16:
                asked = {13: "put itself off", 14: "asked for a retry", 15: "gave itself back", 16: "was rejected"}
                return asked[self.code] + (f": {_first_line(self.text)}" if self.text else "")
            case 17:  # CANCELLED
                return "cancelled" + (f", and killed by signal {signal_name(self.signal)}" if self.signal else "")
            case 10:
                return "lost: " + (_first_line(self.text) or "its claim went to another worker")
            case 20:
                return "expired: it had not begun in time"
        return self.kind

    def _used(self) -> str:
        memory = f", {self.rss / 2**20:.0f} MB" if self.rss else ""
        return f" (CPU {self.cpu:.3g} s{memory})"

    def fields(self) -> dict[str, Any]:
        """The verdict as plain data: what differs from the defaults."""
        return {key: value for key, value in self._asdict().items() if value}

    def dump(self) -> bytes:
        """The verdict as JSON, to send it to another process; what is too long for that is cut."""
        fields = self.fields()
        while len(data := json.dumps(fields, ensure_ascii=False).encode(errors="replace")) > DUMP_MAX:
            longest = max(fields, key=lambda key: len(fields[key]) if isinstance(fields[key], str) else 0)
            half = len(fields[longest]) // 2
            fields[longest] = fields[longest][-half:] if longest == "traceback" else fields[longest][:half]
        return data

    @classmethod
    def load(cls, data: bytes) -> Verdict:
        """The verdict of :meth:`dump`.

        Raises:
            ValueError: When it is none. Whoever runs user code can send anything.
        """
        try:
            fields: dict[str, Any] = json.loads(data)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        return cls.of(fields)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Verdict:
        """The verdict of :meth:`fields`.

        Raises:
            ValueError: When they are of none.
        """
        if type(fields) is not dict or type(fields.get("code")) is not int or fields["code"] not in KINDS:
            raise ValueError("it is no verdict")
        for name, value in fields.items():
            if name not in _TYPES or type(value) not in _TYPES[name]:
                raise ValueError(f"a verdict has no {name} {str(value)[:100]!r}")
            if type(value) in (int, float) and not -_NUMBER_MAX < value < _NUMBER_MAX:
                raise ValueError(f"a verdict has the {name} {value}")
        found = cls(**fields)
        if found.delay is not None and not 0 <= found.delay <= DELAY_MAX:
            raise ValueError(f"a verdict has the delay {found.delay}")
        return found


_NUMBER_MAX = 2**63
_TYPES: dict[str, tuple[type[Any], ...]] = {
    name: {str: (str,), int: (int,), bool: (bool,)}.get(type(default), (int, float))
    for name, default in {**Verdict._field_defaults, "code": 0}.items()
}


def signal_name(number: int) -> str:
    """For example ``9 (SIGKILL)``."""
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)


def _first_line(text: str) -> str:
    line, _, rest = text.strip().partition("\n")
    line = line if len(line) <= 300 else line[:300] + "…"
    line = printable(line)
    return f"{line} …" if rest else line


def printable(text: str) -> str:
    """The text in one line that moves no cursor: whoever wrote a message may have chosen it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
