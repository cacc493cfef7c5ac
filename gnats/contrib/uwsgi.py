"""uWSGI: workers start their connections, and end them in good order. In the application:

    import gnats.contrib.uwsgi

It decides when, never how. Outside of uWSGI importing it does nothing, so that tests and shells may
import the application. It takes the places of ``uwsgi.post_fork_hook`` and ``uwsgi.atexit``, and
calls what was there; when you set them yourself later, call ``worker_start`` and ``worker_exit``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent

import gnats.errors
import gnats.wsgi

try:
    import uwsgi
except ImportError:
    uwsgi = None

__all__ = ["worker_exit", "worker_start"]

# Of worker-reload-mercy, after which uWSGI kills: so much for the requests that it has not waited
# for, as much for the drain, and handlers that do not end may use two seconds more.
SHARE = 1 / 3
MERCY = 60  # seconds: uWSGI's own default

# Seconds for the requests under way: a stop that uWSGI calls brutal does not wait for them at all.
REQUESTS = 5.0

LOOK_EVERY = 0.02  # seconds; uWSGI calls nobody when an application is loaded, or a request over

_ending: gevent.Greenlet[..., None] | None = None


def worker_start() -> None:
    """Make up for a fork that Python has not heard of, connect in the background, and subscribe
    what was declared. Never switches. In a mule or a spooler handlers wait for ``start``: their
    loops do not run by themselves."""
    gnats.after_fork()
    if uwsgi.worker_id() == 0:
        gnats.wsgi.handlers_wait_for_start()
    else:
        gnats.wsgi.start_all()


def worker_exit() -> None:
    """Finish what is under way, send what is buffered, close. Switches.

    Requests under way get five seconds, then each connection its ``stop_timeout``, and neither more
    than a third of ``worker-reload-mercy``. uWSGI may call it twice at once: both wait for one end.
    """
    global _ending
    if os.getpid() == uwsgi.masterpid():
        return  # its loop does not run, and what it had is its workers' by now
    if _ending is None:
        _ending = gevent.spawn(_end, _mercy() * SHARE)
    _ending.join()


def _end(at_most: float) -> None:
    enough = monotonic() + min(REQUESTS, at_most)
    while _is_busy() and monotonic() < enough:
        gevent.sleep(LOOK_EVERY)
    gnats.wsgi.stop_all(at_most)


def _mercy() -> float:
    try:
        return float(uwsgi.opt["worker-reload-mercy"])
    except (KeyError, ValueError, TypeError):
        return MERCY


def _this_worker() -> dict[str, Any]:
    """What uWSGI knows of it; nothing in a mule or a spooler."""
    number = uwsgi.worker_id()
    return dict(uwsgi.workers()[number - 1]) if number else {}


def _is_busy() -> bool:
    """Whether a request is under way here."""
    return bool(_this_worker().get("status") == b"busy")


def _start_when_loaded() -> None:
    """In a worker that loads the application itself (lazy-apps): uWSGI has called its hooks before,
    and what is made after this import must be there."""
    while not _this_worker().get("apps"):
        gevent.sleep(LOOK_EVERY)
    worker_start()


def _install() -> None:
    if getattr(uwsgi, "loop", None) != b"gevent":
        raise gnats.errors.Error(
            "gnats.contrib.uwsgi: uWSGI does not run gevent's loop, in which connections live; "
            "start it with --gevent 100 (greenlets per worker)"
        )
    if uwsgi.worker_id() == 0:
        gnats.wsgi.handlers_wait_for_start()
        _take_post_fork()
    else:
        gevent.spawn(_start_when_loaded)
    uwsgi.atexit = _both(worker_exit, getattr(uwsgi, "atexit", None))


def _take_post_fork() -> None:
    if not _has_own_hooks():
        try:
            # It keeps a list of hooks; were it imported after us, it would throw ours out.
            from uwsgidecorators import postfork
        except Exception:  # not there, or it refuses, in this word, to live without a master
            pass
        else:
            postfork(worker_start)
            return
    uwsgi.post_fork_hook = _both(getattr(uwsgi, "post_fork_hook", None), worker_start)


def _has_own_hooks() -> bool:
    """Whether the application has set what importing uwsgidecorators would overwrite."""
    if "uwsgidecorators" in sys.modules:
        return False
    return hasattr(uwsgi, "post_fork_hook") or hasattr(uwsgi, "spooler")


def _both(*calls: Callable[[], Any] | None) -> Callable[[], None]:
    def call_both() -> None:
        for call in calls:
            if call is not None:
                call()

    return call_both


if uwsgi is not None:
    _install()
