"""procrastinate on PostgreSQL, by https://procrastinate.readthedocs.io/en/stable/howto/basics/worker.html: ten jobs at
once, which are deleted when they have succeeded.
"""

from __future__ import annotations

import os

from procrastinate import App, PsycopgConnector

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://procrastinate.readthedocs.io/en/stable/howto/basics/worker.html"
ACKNOWLEDGES = True

COMMAND = ["procrastinate", "--app", f"{__name__}.app", "worker", "--concurrency", "10", "--delete-jobs", "successful"]
WORKERS = {"one": (400, [COMMAND]), "two": (500, [COMMAND, COMMAND])}

app = App(connector=PsycopgConnector(conninfo=URL))
CALLS = {"count": app.task(name="count")(work.count_async), "stamp": app.task(name="stamp")(work.stamp_async)}


def prepare() -> None:
    app.open()
    if not app.check_connection():  # nobody has made its tables yet
        app.schema_manager.apply_schema()


def send(task: str, n: int) -> None:
    for _ in range(n):
        CALLS[task].defer()


def send_many(task: str, n: int) -> None:
    for begin in range(0, n, 1000):
        CALLS[task].batch_defer(*[{}] * min(1000, n - begin))
