"""Settling what the store refuses for good: a task that has ended does end, with less of what was to be kept of it.

A reason may have a character that the database has no place for, and a dead letter may be too large with its answer.
Sent again and again, such a settlement would keep all others waiting, and then those of the next worker that runs its
task.
"""

from __future__ import annotations

from collections.abc import Sequence

from delayed import answers
from delayed.brokers.base import Broker
from delayed.errors import BrokerError, BrokerUnavailable
from delayed.logger import logger
from delayed.message import Answer, Settlement

WORDS_MAX = 500  # characters of each text that is kept then
NOT_STORED = "delayed.errors.NotSerializable"  # what a handle raises whose result is not there


def settle(broker: Broker, worker: str, settlements: Sequence[Settlement]) -> list[bool]:
    """As :meth:`Broker.settle`; what the store refuses is settled with less of what was to be kept.

    Raises:
        BrokerError: When it refuses that too: then it is not for what is in it.
    """
    try:
        return broker.settle(worker, settlements)
    except BrokerUnavailable:
        raise
    except BrokerError:
        return settle_each(broker, worker, settlements)


def settle_each(broker: Broker, worker: str, settlements: Sequence[Settlement]) -> list[bool]:
    """As :func:`settle`, one by one, after the store has refused them together."""
    return [_settle(broker, worker, settlement) for settlement in settlements]


def _settle(broker: Broker, worker: str, settlement: Settlement) -> bool:
    try:
        return broker.settle(worker, [settlement])[0]
    except BrokerUnavailable:
        raise
    except BrokerError as error:
        accepted = broker.settle(worker, [_lighter(settlement, error)])[0]
        logger.error("task %d: not all of how it ended can be kept: %s", settlement.ref.id, error)
        return accepted


def _lighter(settlement: Settlement, error: BrokerError) -> Settlement:
    reason = settlement.reason[:WORDS_MAX].encode("ascii", "backslashreplace").decode()
    answer = settlement.answer
    if answer is not None:
        found = answers.unpack(answer.data).verdict
        words = found._replace(traceback="", stack="", text=found.text[:WORDS_MAX])
        if found.ok:
            words = words._replace(type=NOT_STORED, text=f"can't be stored: {error}"[:WORDS_MAX])
        answer = Answer(answers.pack(words), answer.ttl)
    return settlement._replace(reason=reason, note=b"", answer=answer)
