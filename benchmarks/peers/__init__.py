"""This library and its peers, side by side: ``python -m benchmarks.peers``.

A file for each of them (`rq.py`, `celery.py`, …), all of the same shape. It is imported where that peer is installed,
by `client.py` and by the peer's own workers:

``DOCS``            the page of the peer's documentation that its configuration follows
``ACKNOWLEDGES``    whether a task stays in the store until it has run, so that a crash does not lose it
``WORKERS``         for each way of working (see `catalog.WAYS`), how many tasks make a drain of about a second, and the
                    command lines of the processes to start, with {url} for where the store is
``send(task, n)``   enqueue so many calls of ``"count"`` or ``"stamp"`` (see `work.py`), one by one
``send_many(…)``    the same in bulk, if the peer has that
``prepare()``       what has to be done before, if anything

The last three may be coroutine functions. Results are off everywhere.
"""
