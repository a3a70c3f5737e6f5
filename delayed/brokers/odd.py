"""What lies in a store and is no task: others can write there too, and no worker may come to harm by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from delayed.brokers.base import Broker
from delayed.fields import ID_MAX
from delayed.logger import logger
from delayed.message import COUNT_MAX, NONCE_MAX, Claim, Settlement, is_task


def tasks_among(
    broker: Broker, worker: str, claims: list[Claim], remove: Callable[[Claim], None] | None = None
) -> list[Claim]:
    """Those of the claims that are tasks, in their order. The others become dead letters, with a line in the log.

    Args:
        broker: that made the claims, for `worker`.
        remove: takes away one that can't be settled, for its own values are no names that the store can find it by;
            None: there are none such.
    """
    odd = [claim for claim in claims if not is_task(claim)]
    if not odd:
        return claims
    reasons = [f"no task: {fault(claim)}" for claim in odd]
    letters = [Settlement(claim.ref, "dead", reason=reason) for claim, reason in zip(odd, reasons, strict=True)]
    for claim, reason, dead in zip(odd, reasons, broker.settle(worker, letters), strict=True):
        if not dead and remove is not None:
            remove(claim)
        log(claim.queue, claim.id, reason, dead=dead)
    return [claim for claim in claims if is_task(claim)]


def log(queue: str, id: object, reason: str, *, dead: bool) -> None:
    """Tell of one that is not handed out: it is a dead letter now, or it was removed."""
    end = "it is a dead letter now" if dead else "it is removed"
    logger.error("what queue %s has as %.50r is %s; %s", queue, id, reason, end, extra={"action": "odd"})


def fault(claim: Claim) -> str:
    """Why a claim is no task, in words."""
    _, id, delivery, nonce, attempt, header, payload = claim
    numbers: Sequence[tuple[str, object, int, int]] = (
        ("id", id, 1, ID_MAX),
        ("number of deliveries", delivery, 1, COUNT_MAX),
        ("number of attempts", attempt, 0, COUNT_MAX),
        ("nonce", nonce, 0, NONCE_MAX),
    )
    for name, number, least, most in numbers:
        if type(number) is not int or not least <= number <= most:
            return f"its {name} is {number!r:.50}, not from {least} to {most}"
    for name, data in (("header", header), ("payload", payload)):
        if type(data) is not bytes:
            return f"its {name} is no bytes"
    return "nothing that a worker can read"
