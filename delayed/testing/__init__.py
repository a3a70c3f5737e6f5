"""For the tests of programs that enqueue: no store, no worker, no waiting.

>>> def test_signing_up(delayed_tasks):  # a fixture of pytest, there as soon as delayed is installed
...     sign_up("ada")
...     delayed_tasks.assert_enqueued(welcome, "ada")
...     delayed_tasks.run_all()
...     delayed_tasks.advance("1d")
...     assert letters == ["welcome", "how do you like it?"]

Without pytest: ``with capture() as tasks:``.
"""

from __future__ import annotations

from delayed.testing.tasks import Run, Tasks, capture

__all__ = ["Run", "Tasks", "capture"]
