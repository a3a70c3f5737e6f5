"""The application that Celery's workers are started with."""

from __future__ import annotations

import os

from celery import Celery

from tests.chaos.peer_tasks import nap

app = Celery("chaos", broker=os.environ["CHAOS_URL"])
celery_nap = app.task(nap)
