"""The tasks that tests/test_celery.py runs in Celery's workers, and puts into their queue: those of
tests/web_app.py, whose Nats and handlers they share. Each returns the pid."""

from __future__ import annotations

import os

import web_app
from celery import Celery

from gnats.contrib.celery import connect_signals

folder = os.environ["TEST_CELERY_FOLDER"]

app = Celery("celery_tasks", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.update(
    broker_transport_options={
        "data_folder_in": f"{folder}/queue",
        "data_folder_out": f"{folder}/queue",
        "control_folder": f"{folder}/control",
    },
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)

connect_signals()
connect_signals()  # twice is once


@app.task
def do(what: str, number: int) -> int:
    web_app.ROUTES[what](str(number))
    return os.getpid()
