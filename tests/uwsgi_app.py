"""The application of tests/web_app.py under uWSGI, beside hooks of its own."""

from __future__ import annotations

import sys

import uwsgi


def started() -> None:
    sys.stderr.write("a hook of the application's own: started\n")


def ended() -> None:
    sys.stderr.write("a hook of the application's own: ended\n")


uwsgi.post_fork_hook = started
uwsgi.atexit = ended

# isort: off
import gnats.contrib.uwsgi  # noqa: E402, F401  # after our hooks: it calls what was there
from web_app import app  # noqa: E402, F401  # after the import above: it may use its Nats at once
