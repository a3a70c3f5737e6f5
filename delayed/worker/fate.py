"""What becomes of a task: from the verdict on a run to the settlement of its claim. Plain arithmetic, which children
with hooks do too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from delayed import context
from delayed.errors import DecodeError, TaskTimeout
from delayed.message import Claim, Settlement
from delayed.retry import KILLED, delay_before_next, is_retried, names_of
from delayed.worker import verdict
from delayed.worker.verdict import Verdict

# Seconds before the next try of a task that this worker can't run: during a rolling deploy a newer worker may know its
# function, and one of another kind may keep its limits. After the last one it is dead.
UNKNOWN_FUNCTION_DELAYS = (5.0, 15.0, 45.0)
# Seconds before a task that gave itself back may be claimed again: in its first delivery, with twice as much in each
# later one, and at most. So it is not taken in a circle, and its deliveries last for some minutes.
GIVE_BACK_PAUSE = (0.5, 60.0)
REASON_MAX = 16384  # bytes that a dead letter keeps of the verdict on a task that failed for good

_TIMEOUT = names_of(TaskTimeout())
_WITHOUT_ERROR = (verdict.TIMED_OUT, verdict.EXITED, verdict.KILLED)


def settle(
    claim: Claim, found: Verdict, transaction: int = context.NO_TRANSACTION, *, keep: bool = False
) -> Settlement | None:
    """The settlement that a verdict leads to; None if the claim is gone: ended by the task's own transaction, or lost.

    Args:
        keep: whether the queue keeps what failed for good: then that is dead, with its whole verdict as the reason.

    ========================  =====================================================================
    returned                  done
    raised, timed out,
    exited, killed            retry as the task's policy says, which may mind the error, else done: it failed
    bad arguments             done: no retry can mend it
    not run                   done: what it was to run after has failed
    unknown function,
    refused for its limits    retry after 5, 15 and 45 s, then dead: another worker may run it
    undecodable, not allowed  dead
    cancelled                 done: somebody wants it gone
    expired                   done: it may not begin any more
    stopped by the worker     back, uncharged
    asked for a retry         retry after the delay that it asked for, if its policy has one left, else done: it failed
    put itself off            back, uncharged, for the delay that it asked for, as often as it likes
    gave itself back          back, uncharged, after a pause that grows; dead after `max_deliveries`
    was rejected              dead
    lost                      nothing: the claim is gone
    ========================  =====================================================================
    """
    code = found.code
    if code == verdict.LOST or transaction == context.COMMITTED:
        return None
    if code in (verdict.RETURNED, verdict.KEPT, verdict.CANCELLED, verdict.EXPIRED):
        return Settlement(claim.ref, "done")
    if code in (verdict.BAD_ARGUMENTS, verdict.BLOCKED):
        return _failed(claim, found, keep)
    if code == verdict.STOPPED:
        return Settlement(claim.ref, "back")
    if code in (verdict.UNDECODABLE, verdict.NOT_ALLOWED):
        return _dead(claim, found)
    if code == verdict.REJECTED:
        return _dead(claim, found.text or "rejected by its own code")
    if code in (verdict.UNKNOWN_FUNCTION, verdict.REFUSED):
        if claim.attempt <= len(UNKNOWN_FUNCTION_DELAYS):
            return Settlement(claim.ref, "retry", UNKNOWN_FUNCTION_DELAYS[claim.attempt - 1])
        return _dead(claim, found)
    if code == verdict.POSTPONED:
        return Settlement(claim.ref, "back", found.delay or 0.0)
    try:
        message = claim.message()
    except DecodeError as error:
        return _dead(claim, error)
    if code == verdict.GIVEN_BACK:
        if claim.deliveries >= message.max_deliveries:
            return _dead(
                claim,
                f"it {found._what()} in its delivery number {claim.deliveries}, and may have no more; "
                "give a task that does so often more of them with the option max_deliveries",
            )
        pause = min(GIVE_BACK_PAUSE[0] * 2.0 ** min(claim.deliveries - 1, 64), GIVE_BACK_PAUSE[1])
        return Settlement(claim.ref, "back", pause)
    if found.decision == verdict.AGAIN:
        return Settlement(claim.ref, "retry", found.delay or 0.0)
    if found.decision == verdict.FINAL or (message.retry and not _is_retried(message.retry, found)):
        return _failed(claim, found, keep)
    try:
        delay = delay_before_next(message.retry, claim.attempt)
    except DecodeError as error:
        return _dead(claim, error)
    if delay is None:
        return _failed(claim, found, keep)
    if code == verdict.RETRIED:
        delay = 0.0
    return Settlement(claim.ref, "retry", delay if found.delay is None else found.delay)


def _is_retried(retry: Mapping[str, Any], found: Verdict) -> bool:
    # What no child could tell by an error: it died in the run, or its guardians stopped that.
    if found.decision != verdict.UNDECIDED or found.code not in _WITHOUT_ERROR or not isinstance(retry, dict):
        return True
    return is_retried(retry, _TIMEOUT if found.code == verdict.TIMED_OUT else (KILLED,))


def _failed(claim: Claim, found: Verdict, keep: bool) -> Settlement:
    if not keep:
        return Settlement(claim.ref, "done")
    return _dead(claim, _cut("\n".join([f"{found}, in attempt {claim.attempt}", *found.places])))


def _cut(text: str) -> str:
    """The text, or if it is too long its beginning and its end, which say what is wrong and where."""
    data = text.encode("utf-8", "replace")
    if len(data) <= REASON_MAX:
        return text
    half = REASON_MAX // 2 - 50
    begin, end = data[:half].decode("utf-8", "ignore"), data[-half:].decode("utf-8", "ignore")
    return f"{begin}\n… {len(data) - 2 * half} bytes are left out …\n{end}"


def _dead(claim: Claim, reason: object) -> Settlement:
    # Error texts may have what no store can keep as text: what came from bytes that are none.
    return Settlement(claim.ref, "dead", reason=str(reason).encode("utf-8", "replace").decode())


def fitting(settlements: Sequence[Settlement], most: int) -> int:
    """How many of the first of them have no more than `most` bytes of answers; one at least."""
    size = 0
    for number, settlement in enumerate(settlements):
        size += len(settlement.answer.data) if settlement.answer is not None else 0
        if size > most and number:
            return number
    return len(settlements)
