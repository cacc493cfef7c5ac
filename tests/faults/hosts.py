"""What can be done to the client's own process: to its clock, its resolver, its time to run."""

from __future__ import annotations

import socket as plain_socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.monkey import get_original
from gevent.resolver.blocking import Resolver

NAME = "server.test"  # resolved by us and nobody else
LIVING = "127.0.0.1"
DEAD = "127.0.0.77"  # nothing listens there

_sleep = get_original("time", "sleep")
_time = time.time

#: What the resolver answers, per mode. None: it fails; an empty list: it hangs.
ANSWERS: dict[str, list[str] | None] = {
    "good": [LIVING],
    "failing": None,
    "hanging": [],
    "moved": [DEAD],
    "several": [DEAD, LIVING],
}


class TestResolver(Resolver):
    """gevent's resolver, with a mind of its own about `NAME`."""

    __test__ = False

    def __init__(self) -> None:
        self.mode = "good"

    def getaddrinfo(self, host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        if host not in (NAME, NAME.encode()):
            return super().getaddrinfo(host, port, *rest, **named)
        while self.mode == "hanging":
            gevent.sleep(0.01)
        addresses = ANSWERS[self.mode]
        if addresses is None:
            raise plain_socket.gaierror(plain_socket.EAI_AGAIN, "name resolution fails for now")
        kind = plain_socket.SOCK_STREAM
        return [(plain_socket.AF_INET, kind, 6, "", (one, port)) for one in addresses]


class ThisProcess:
    """The client lives in this process."""

    def __init__(self, resolver: TestResolver) -> None:
        self._resolver = resolver

    def resolve(self, mode: str) -> None:
        self._resolver.mode = mode

    def turn_clock(self, seconds: float) -> None:
        """The wall clock jumps; 0 sets it right."""
        time.time = (lambda: _time() + seconds) if seconds else _time

    def stand_still(self, seconds: float) -> None:
        """Nothing of this process runs, as if it were stopped and continued."""
        _sleep(seconds)


@contextmanager
def this_process() -> Iterator[ThisProcess]:
    """Everything is put back at the end."""
    hub = gevent.get_hub()
    hub.resolver = resolver = TestResolver()
    host = ThisProcess(resolver)
    try:
        yield host
    finally:
        del hub.resolver  # gevent makes another one when it is needed
        host.turn_clock(0)
