"""When a claim is lost of which the lease has ended: in all stores by the same rule, here for those in Python.

Sweeps that are further apart than half a lease are an outage, of the store or of all who sweep, in which nobody could
renew. After it nothing is returned for one lease, the grace. If there is another outage within the grace, this goes on
after it, as long as was left; and at its end, only those claims are lost that were not renewed since before the first
of the outages within it. For the others another grace begins, since they may have had no time to renew.

So a claim has a whole lease of the store's life to be renewed in, however often it comes and goes, and one that nobody
renews is lost after two. An outage counts as a part of a lease, because to one slow sweeper every pause looks like one:
he would never return anything.
"""

from __future__ import annotations

from typing import NamedTuple

OUTAGE = 1 / 3  # of a lease, which an outage within the grace counts as: as much as is between two renewals


class Grace(NamedTuple):
    """What is known of the sweeps of a queue; times in any one unit.

    Attributes:
        swept: when it was last swept; None: never.
        until: when the last grace ends.
        outage: when the first outage within it began; None: there was none.
    """

    swept: float | None = None
    until: float = 0.0
    outage: float | None = None

    def sweep(self, now: float, lease: float) -> tuple[Grace, float | None]:
        """What is known after a sweep, and before when leases have to have ended for it to return their tasks.

        None: it returns nothing.
        """
        _, until, outage = self
        gap = now - self.swept if self.swept is not None else 0.0
        if self.swept is not None and gap > lease / 2:
            if self.swept >= until:
                until = now + lease
            else:
                until += gap - lease * OUTAGE
                outage = self.swept if outage is None else outage
        if now < until:
            return Grace(now, until, outage), None
        if outage is None:
            return Grace(now, until), now
        return Grace(now, now + lease), min(outage, now)
