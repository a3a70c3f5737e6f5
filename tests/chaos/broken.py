"""Brokers with one fault each: a judge that passes them proves nothing.

Each is the real broker on SQLite with one rule of the contract taken out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from delayed.brokers.base import LEASE
from delayed.brokers.sqlite import SQLiteBroker
from delayed.errors import BrokerUnavailable
from delayed.message import Claim, Message, Ref, Renewal, Settlement, Swept


class AckFirst(SQLiteBroker):
    """Takes what it claims out of the store at once."""

    def settle_and_claim(
        self,
        worker: str,
        settlements: Sequence[Settlement],
        queues: Sequence[str],
        seq: int,
        nonce: int,
        limit: int,
        lease: float,
    ) -> tuple[list[bool], list[Claim]]:
        accepted, claims = super().settle_and_claim(worker, settlements, queues, seq, nonce, limit, lease)
        super().settle_and_claim(worker, [Settlement(claim.ref, "done") for claim in claims], (), 0, 0, 0, 0.0)
        return accepted or [True] * len(settlements), claims

    def renew(self, worker: str, queues: Sequence[str], refs: Sequence[Ref], lease: float) -> Renewal:
        return Renewal(list(refs), [], [])


class NoToken(SQLiteBroker):
    """Settles and renews by the task's id alone, whoever claimed it since."""

    def settle_and_claim(
        self,
        worker: str,
        settlements: Sequence[Settlement],
        queues: Sequence[str],
        seq: int,
        nonce: int,
        limit: int,
        lease: float,
    ) -> tuple[list[bool], list[Claim]]:
        forged = [settlement._replace(ref=self._claim_of_today(settlement.ref)) for settlement in settlements]
        return super().settle_and_claim(worker, forged, queues, seq, nonce, limit, lease)

    def renew(self, worker: str, queues: Sequence[str], refs: Sequence[Ref], lease: float) -> Renewal:
        super().renew(worker, queues, [self._claim_of_today(ref) for ref in refs], lease)
        return Renewal(list(refs), [], [])

    def _claim_of_today(self, ref: Ref) -> Ref:
        with self._file.read() as file:
            sql = """
                SELECT delivery, nonce FROM delayed_task
                WHERE queue = (SELECT number FROM delayed_queue WHERE name = ?) AND id = ?
            """
            row = file.db.execute(sql, (ref.queue, ref.id)).fetchone()
        return ref if row is None else ref._replace(delivery=row[0], nonce=row[1] % (1 << 64))


class LostReplies(SQLiteBroker):
    """Stores what is enqueued, and says every other time that it may not have: not broken, only far away."""

    def enqueue(self, queue: str, messages: Sequence[Message], session: str, seq: int) -> None:
        super().enqueue(queue, messages, session, seq)
        self._lost = not getattr(self, "_lost", False)
        if self._lost:
            raise BrokerUnavailable("the reply was lost")


class NotIdempotent(LostReplies):
    """Stores as another task whatever it is sent, resends too."""

    def enqueue(self, queue: str, messages: Sequence[Message], session: str, seq: int) -> None:
        fresh = [message._replace(id=self.reserve_ids(queue, 1)) for message in messages]
        super().enqueue(queue, fresh, os.urandom(16).hex(), 1)


class BlindSweep(SQLiteBroker):
    """Returns whatever was claimed when it last looked, and does not look whether it was renewed since."""

    _seen: Sequence[int] = ()

    def sweep(self, queue: str, lease: float = LEASE) -> Swept:
        running = [entry.message.id for entry in self.peek(queue, "running")]
        with self._file.write() as file:
            file.db.executemany(
                "UPDATE delayed_task SET at = 0 WHERE state = 2 AND id = ?",
                [(id,) for id in running if id in self._seen],
            )
        self._seen = running
        return super().sweep(queue, lease)
