"""Whether a failed run is repeated, as far as what it raised decides that: told in the child, where the error is.

By names the policy's own plain data says it. A function of the user's is called like a hook: it is stopped when it
takes too long, and what it raises harms nothing. What neither of them decides is arithmetic, see :mod:`.fate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from delayed.codec import Codec
from delayed.durations import seconds_of
from delayed.errors import NotAllowed
from delayed.functions import resolve
from delayed.message import Message
from delayed.retry import is_retried, known_decider, names_of
from delayed.task import finished
from delayed.worker import outcome, verdict
from delayed.worker.verdict import Verdict

_FAILED = (verdict.RAISED, verdict.TIMED_OUT, verdict.EXITED)


class Decision:
    """What becomes of one failed run.

    Args:
        message: the task's message.
        error: what it raised.
        attempt: the number of the run.
    """

    def __init__(self, message: Message, error: BaseException, attempt: int) -> None:
        self.error = error
        self.attempt = attempt
        self.path: str | None = None  # of the function that is to be asked
        self.payload = message.payload
        self.kind = verdict.UNDECIDED
        self.delay: float | None = None
        retry = message.retry
        if isinstance(retry, dict) and outcome.outcome_of(error) in _FAILED:
            if is_retried(retry, names_of(error)):
                self.kind = verdict.USUAL
                self.path = retry.get("policy")
            else:
                self.kind = verdict.FINAL

    def ask(self, codec: Codec) -> None:
        """Ask the function.

        Raises:
            NotAllowed: When its queue does not allow it.
            FunctionNotFound: When its path leads nowhere.
            ConfigError: When its answer makes no sense.
        """
        assert self.path is not None
        answer = finished(_allowed(self.path, codec, self.payload)(self.error, self.attempt))
        if answer is None or answer is False:
            self.kind = verdict.FINAL
        elif answer is not True:
            self.delay = seconds_of(f"the answer of {self.path}", answer)
            self.kind = verdict.AGAIN

    def on(self, found: Verdict) -> Verdict:
        """The verdict with the decision."""
        if self.kind == verdict.AGAIN:
            return found._replace(decision=self.kind, delay=self.delay)
        return found._replace(decision=self.kind)


def _allowed(path: str, codec: Codec, payload: bytes) -> Callable[..., Any]:
    """The function, by the rules for the functions of tasks: whoever can write to the store names it too."""
    if codec.allow is not None:
        codec.allow.check_path(path)
        func = resolve(path)
        codec.allow.check(path, func)
        return func
    if not codec.is_plain(payload):
        return resolve(path)
    known = known_decider(path)
    if known is None:
        raise NotAllowed(
            f"{path} is not used as a retry policy in any module that this worker has imported, and no other functions "
            "are asked where payloads are plain data: name it in a decorator, or give the queue a list: allow=[...]"
        )
    return known
