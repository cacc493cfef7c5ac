"""Celery: workers start their connections, and end them in good order. Where the app is made:

    from gnats.contrib.celery import connect_signals

    connect_signals()

It decides when, never how. Under ``-P gevent`` all is there. Under prefork and solo the loop stands
still between tasks: a task may publish and request, and the server has what it has published before
it is over, but declared handlers are not started. Eventlet and threads are refused, in the log.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import concurrency, signals

import gnats.wsgi

__all__ = ["connect_signals"]

logger = logging.getLogger("gnats")

# Seconds that a task may take longer, before it and after it, when the server does not answer: as
# long as a publish may wait for room.
FLUSH = 1.0

_is_loop_still = False


def connect_signals() -> None:
    """Have Celery tell us of the life of its workers. Calling it again changes nothing. Never
    switches; where no worker runs, such as in a web application that sends tasks, nothing else
    happens."""
    for signal, receiver in (
        (signals.worker_init, _worker_init),
        (signals.worker_shutdown, _end),
        (signals.worker_process_init, _process_init),
        (signals.worker_process_shutdown, _end),
        (signals.task_prerun, _task_prerun),
        (signals.task_postrun, _task_postrun),
    ):
        signal.connect(receiver, dispatch_uid=f"{__name__}.{receiver.__name__}")


def _worker_init(sender: Any = None, **_more: Any) -> None:
    """In the process that was called ``celery worker``, when the tasks are imported."""
    pool = concurrency.get_implementation(sender.pool_cls).__module__.rpartition(".")[2]
    if pool == "gevent":
        gnats.wsgi.start_all()
        return
    gnats.wsgi.handlers_wait_for_start()
    if pool not in ("prefork", "solo"):
        logger.error("gnats: connections do not live in a pool of kind %r: use -P gevent", pool)
    elif gnats.wsgi.has_handlers():
        logger.warning("gnats: handlers are not started under -P %s: use -P gevent", pool)


def _process_init(**_more: Any) -> None:
    """In each child of prefork, and in the one process of solo."""
    global _is_loop_still
    _is_loop_still = True
    gnats.wsgi.handlers_wait_for_start()


def _task_prerun(**_more: Any) -> None:
    if _is_loop_still:  # a link that has ended since the last task is found out now
        gnats.wsgi.flush_all(FLUSH, linked_only=True)


def _task_postrun(**_more: Any) -> None:
    if _is_loop_still:
        gnats.wsgi.flush_all(FLUSH)


def _end(**_more: Any) -> None:
    """Tasks are over: finish what is under way, send what is buffered, close. Switches, at most for
    each one's ``stop_timeout``, and two seconds more for handlers that do not end."""
    gnats.wsgi.stop_all()
