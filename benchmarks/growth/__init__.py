"""How this library does when there is more of something: ``python -m benchmarks.growth``.

``curves``    more workers, tasks that wait, bytes in a task, and queues, on every store
``network``   two more milliseconds to the store, beside peers
``stuck``     how soon a task that is stuck is stopped, and the next one begins
``sleepers``  a thousand tasks that wait, at once
``report``    the second part of docs/benchmarks.md, and its plots
"""
