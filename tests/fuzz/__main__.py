"""Fuzzes all decoders, or those that are named: ``RUNS=1000000 python -m tests.fuzz header verdict``.

Exits with 1 if one of them fails; what it failed for lies in the working folder then, as libFuzzer's `crash-…`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time

TIMEOUT = 10  # seconds for one input
MEMORY = 2048  # MB


def fuzz(name: str, runs: int) -> bool:
    """Whether one decoder held out; prints how many inputs it was given."""
    options = [f"-runs={runs}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}", "-max_len=4096"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.target", name, *options], capture_output=True, text=True, errors="replace"
    )
    found = re.search(r"Done (\d+) ", done.stderr)
    if done.returncode == 0 and found is not None:
        print(f"{name:24} {int(found[1]):>9,} runs in {time.monotonic() - began:.0f} s", flush=True)
        return True
    print(f"{name:24} FAILED\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}", flush=True)
    return False


def main(names: list[str]) -> int:
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed; there may be no wheel of it for this Python or system", file=sys.stderr)
        return 1
    runs = int(os.environ.get("RUNS", "200000"))
    if not names:
        from tests.fuzz.target import TARGETS

        names = list(TARGETS)
    held_out = [fuzz(name, runs) for name in names]
    return 0 if all(held_out) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
