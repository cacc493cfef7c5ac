"""gunicorn: workers start their connections, and end them in good order. For gunicorn.conf.py:

    from gnats.contrib.gunicorn import post_worker_init, worker_exit

Importing it tells that this process is the arbiter: with ``preload_app``, declared handlers do not
start there, but in the workers. When you have hooks of your own, call these from them.
"""

from __future__ import annotations

import os
from typing import Any

import gnats.wsgi

__all__ = ["post_worker_init", "worker_exit"]

# Of graceful_timeout, after which the arbiter kills. The requests under way have used up some of it
# before us, and handlers that do not end may use two seconds more.
SHARE = 1 / 3
CLOSING = 3.0  # seconds that a stop may use beyond its time, see gnats.wsgi

gnats.wsgi.handlers_wait_for_start()


def post_worker_init(_worker: Any) -> None:
    """Connect in the background, and subscribe what was declared. Never switches."""
    gnats.wsgi.warn_of_blocking()
    gnats.wsgi.start_all()


def worker_exit(_server: Any, worker: Any) -> None:
    """Finish what is under way, send what is buffered, close. Switches, at most for each one's
    ``stop_timeout`` or a third of ``graceful_timeout``, whichever is shorter."""
    if worker.pid != os.getpid():
        return  # the arbiter calls it, too, for a worker that it finds gone
    graceful = worker.cfg.graceful_timeout
    gnats.wsgi.stop_all(at_most=max(0.0, min(graceful * SHARE, graceful - CLOSING)))
