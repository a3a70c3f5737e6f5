"""Leaves a background process behind, in the child's group or in a session of its own."""

from __future__ import annotations

import subprocess

from tests.workers.deaths import RETURNED, Death, ends


def die(ledger: str, where: str) -> None:
    process = subprocess.Popen(["sleep", "3600"], start_new_session=where == "session")
    process.returncode = 0  # so that it is not reported as still running


DEATHS = [Death(die, ends(RETURNED), (where,)) for where in ("group", "session")]
