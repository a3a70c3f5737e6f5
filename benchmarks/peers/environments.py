"""An environment for each peer, so that each gets the newest versions that it can live with: build/peers/NAME."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.peers.catalog import Peer

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "build" / "peers"
PATIENCE = 300.0  # seconds that an installation may take


class LeftOut(Exception):
    """Raised when a peer can't be measured, with the reason."""


def interpreter(peer: Peer) -> Path:
    """The Python of the peer's environment, which is made if there is none with these requirements.

    Raises:
        LeftOut: When its packages can't be installed.
    """
    if not peer.requirements:
        return Path(sys.executable)
    folder = FOLDER / peer.name
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join(peer.requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check", "install"]
    venv = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)]
    for command in (venv, [*pip, *peer.requirements]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise LeftOut(f"its installation took more than {PATIENCE:g} s") from None
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise LeftOut(f"it can't be installed: {(lines or done.stderr.splitlines() or ['no reason given'])[-1]}")
    stamp.write_text(wanted)
    return python


def packages(peer: Peer) -> list[str]:
    """The names of what was asked for, without extras, and of its driver: with hiredis, redis-py is faster."""
    drivers = {"redis": ["redis", "hiredis"], "postgres": ["psycopg", "asyncpg"], "mongodb": ["pymongo"], "sqlite": []}
    names = [requirement.partition("[")[0] for requirement in peer.requirements or ("delayed",)]
    return [*dict.fromkeys([*names, *drivers[peer.store]])]
