"""The verdict on a run: as its child has told it, as the death of the child shows it, and as the log has it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence

from delayed import tracing
from delayed.errors import DecodeError
from delayed.logger import logger
from delayed.message import Claim, Settlement
from delayed.worker import board as boards
from delayed.worker import channel, verdict
from delayed.worker.board import Slot
from delayed.worker.ladder import Ladder
from delayed.worker.verdict import Verdict

# Whose dead letters have a reason that their verdict does not tell.
_ADDED = (verdict.POSTPONED, verdict.GIVEN_BACK, verdict.REJECTED)


def verdict_told(slot: Slot, detail: bytes) -> Verdict:
    """The verdict on a run whose end its child has noted on the board.

    Args:
        detail: the child's own words; empty if it died before it could say them.
    """
    if detail:
        try:
            return Verdict.load(detail)
        except ValueError:  # it can't be read; what the board says will do
            pass
    return Verdict(slot.code, text=slot.text, delay=slot.delay, decision=slot.decision)


def checked(slot: Slot, found: Verdict) -> Verdict:
    """The verdict on a run whose child died in it, if that was not before the seal was found to be right: then nobody
    vouches for the retry policy in its header.
    """
    if slot.timeout != boards.CHECKING or found.code not in (verdict.KILLED, verdict.TIMED_OUT, verdict.EXITED):
        return found
    text = f"its process ended while it looked at the message: {found._what()}"
    return found._replace(code=verdict.UNDECODABLE, text=text, timeout=None)


def log_doubt(ids: Sequence[int], seconds: float) -> None:
    """Say that exclusive tasks are killed, for the store has not vouched for their claims for so long."""
    logger.warning(
        "exclusive tasks %s are stopped: their claims could not be renewed for %.3g s, and others may begin them soon",
        ", ".join(map(str, ids)), seconds, extra={"action": "in_doubt"},
    )  # fmt: skip


def verdict_of_death(
    status: int | None, by_us: bool, out_of_memory: bool, stack: str, wall: float, cpu: float, rss: int
) -> Verdict:
    """The verdict on a run whose child died in it.

    Args:
        status: the wait status; None if nobody could wait for the child.
        by_us: whether the worker had sent SIGKILL.
    """
    if status is None:
        return Verdict(
            verdict.KILLED, text="its end was not seen", stack=stack, by_us=by_us, wall=wall, cpu=cpu, rss=rss
        )
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return Verdict(
            verdict.KILLED,
            signal=-code,
            by_us=by_us,
            core=os.WCOREDUMP(status),
            out_of_memory=out_of_memory and not by_us,
            stack=stack,
            wall=wall,
            cpu=cpu,
            rss=rss,
        )
    text = "the process ended without an outcome"
    return Verdict(verdict.EXITED, exit_code=code, text=text, stack=stack, wall=wall, cpu=cpu, rss=rss)


def guilty(seat: int, begun: Sequence[Slot], status: int | None, ladder: Ladder) -> set[int]:
    """The serials of those of the tasks `begun` that their child's death is to be charged to.

    That is who held up the event loop; else who was being stopped; else who was alone; else whose thread crashed, if
    faulthandler could say so. None of them if nobody can tell.
    """
    blamed = ladder.blamed.get(seat)
    if blamed in {slot.serial for slot in begun}:
        return {blamed}
    found = {slot.serial for slot in begun if ladder.outcome(seat, slot.lane, slot.serial)[0] != boards.STOP_NOTHING}
    if found or ladder.has_killed(seat):
        return found
    # Whoever closed the channel may have ended long before. A task that exits with that code by itself is told when it
    # runs again, in a spare seat, where suspects run apart.
    is_shared = ladder.board.lanes > 1 and seat < ladder.board.seats - boards.SPARES
    if is_shared and status is not None and os.waitstatus_to_exitcode(status) == channel.CHANNEL_LOST:
        return set()
    if len(begun) == 1:
        return {begun[0].serial}
    thread = crashed_thread(ladder.read_stack(seat))
    crashed = [slot.serial for slot in begun if thread and ladder.board.thread(seat, slot.lane) == thread]
    return set(crashed) if len(crashed) == 1 else set()


def crashed_thread(dump: str) -> int:
    """The ident of the thread in which a crash happened, as faulthandler tells it; 0 if it tells none."""
    if not dump.startswith("Fatal Python error"):
        return 0
    match = re.search(r"^Current thread 0x([0-9a-f]+)", dump, re.MULTILINE)
    return int(match[1], 16) if match else 0


_ENDS = {verdict.CANCELLED: "cancelled", verdict.EXPIRED: "expired"}


def log_verdict(claim: Claim, found: Verdict, settlement: Settlement | None) -> None:
    """One log record for every run that did not return."""
    try:
        func = claim.message().func
    except DecodeError:
        func = "?"
    delay, reason = (settlement.delay, settlement.reason) if settlement is not None else (0.0, "")
    adds = found.code in _ADDED and reason != found.text
    fates = {
        "retry": f"it is tried again in {delay:.3g} s",
        "back": "it goes back to the queue, uncharged" + (f", for {delay:.3g} s at least" if delay else ""),
        "dead": "it is kept as a dead letter" + (f": {reason}" if adds else ""),
        "done": "it failed for good" + (": its retry policy says so" if found.decision == verdict.FINAL else ""),
        "lost": "another worker has it",
        "committed": "its transaction had committed, so it is done",
        "cancelled": "it is not run again",
        "expired": "it is not run",
    }
    if settlement is not None:
        action: str = _ENDS.get(found.code, settlement.action)
    else:
        action = "lost" if found.code == verdict.LOST else "committed"
    quiet = {"back": logging.INFO, "cancelled": logging.INFO, "retry": logging.WARNING, "lost": logging.WARNING}
    quiet["expired"] = logging.WARNING
    level = quiet.get(action, logging.ERROR)
    if found.code == verdict.POSTPONED and func == "?":  # only a later version can read it
        level = logging.WARNING
    more = "".join(f"\n{part}" for part in found.places)
    shown = {"arguments": found.arguments} if found.arguments else {}
    logger.log(
        level,
        "task %d %s%s (attempt %d) %s; %s%s",
        claim.id,
        func,
        found.arguments,
        claim.attempt,
        found,
        fates[action],
        more,
        extra={
            "action": "task_" + found.kind.replace(" ", "_"),
            "task_id": claim.id,
            "queue": claim.queue,
            "func": func,
            "attempt": claim.attempt,
            **shown,
            **tracing.extra_of(claim),
        },
    )


def log_returned(claim: Claim, wall: float) -> None:
    """One log record for a run that returned, for who debugs."""
    logger.debug(
        "task %d returned after %.3g s",
        claim.id,
        wall,
        extra={"action": "task_returned", "task_id": claim.id, "queue": claim.queue, **tracing.extra_of(claim)},
    )
