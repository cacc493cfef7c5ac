"""The web application that tests/test_gunicorn.py runs under gunicorn: plain WSGI, one Nats."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import Any
from urllib.parse import parse_qs

from gevent import sleep  # with preload this is imported before anything is patched

from gnats.wsgi import Nats

nats = Nats(os.environ["TEST_NATS_URL"], reconnect_wait=0.1, reconnect_jitter=0.05)


@nats.subscription("jobs.*", queue="workers", concurrency=10)
def work(msg: Any) -> None:
    number = msg.subject.split(".")[1]
    nats.publish(f"started.{number}", str(os.getpid()))
    sleep(0.1)
    nats.publish(f"done.{number}", str(os.getpid()))


@nats.subscription("who", queue="workers")
def who(msg: Any) -> None:
    msg.respond(str(os.getpid()))


@nats.subscription("roll.call")
def here(msg: Any) -> None:
    msg.respond(str(os.getpid()))


if os.environ.get("TEST_USED_AT_IMPORT"):
    nats.publish(f"loaded.{os.getpid()}")
    nats.flush()


def publish(number: str) -> None:
    nats.publish(f"seen.{number}", str(os.getpid()))


def publish_and_flush(number: str) -> None:
    publish(number)
    nats.flush(timeout=5.0)


def publish_late(number: str) -> None:
    sleep(1.0)
    publish(number)


def ask(number: str) -> None:
    nats.request("who", number, timeout=5.0)


ROUTES: dict[str, Callable[[str], None]] = {
    "/publish": publish,
    "/flush": publish_and_flush,
    "/late": publish_late,
    "/ask": ask,
    "/pid": lambda number: None,
}


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Do what the path says, and answer with the pid and the seconds that it took."""
    if environ["PATH_INFO"].startswith("/health"):
        return nats.health_app(environ, start_response)
    number = parse_qs(environ["QUERY_STRING"]).get("n", ["0"])[0]
    began = monotonic()
    ROUTES[environ["PATH_INFO"]](number)
    body = f"{os.getpid()} {monotonic() - began:.3f}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
