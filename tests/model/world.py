"""What is around the connection under test: server, proxies, an outsider, and the server's log.

Nothing here imports gnats itself: the outsider is a NATS client of its own, on a socket, and the
log is the server's own account of every frame that it took, so a fault of gnats cannot hide in
the instrument that looks for it. The log outlives a SIGKILL of the server, and is complete for
all that a PONG has confirmed.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import gevent
import trustme
from gevent import socket
from gevent.event import Event

from gnats.testing import ChaosProxy, NatsServer, wait_until
from gnats.testing.ports import free_port

SLOW_ANSWER = 0.03  # seconds until the outsider answers a request to q.slow
MANY = 5  # answers to a request to q.many

_CONFIG = """
log_file: {log}
logtime: false
trace: true
max_traced_msg_len: 16
tls {{ cert_file: {cert}, key_file: {key} }}
allow_non_tls: true
websocket {{ listen: "127.0.0.1:{websocket}", no_tls: true }}
"""


class Outside:
    """A second client, straight at the server: it tells subscriptions, and answers requests.

    Requests go to ``<run>.q.<kind>.<number>``: *echo* is answered at once, *slow* a little later,
    *many* with several answers, *mute* never.
    """

    def __init__(self, url: str) -> None:
        host, port = url[len("nats://") :].rsplit(":", 1)
        self.alive = True
        self._pongs = 0
        self._pinged = 0
        self._news = Event()
        self._sock = socket.create_connection((host, int(port)), timeout=10)
        self._sock.settimeout(None)
        self._reader = gevent.spawn(self._read)
        fields = {
            "verbose": False,
            "pedantic": False,
            "name": "outside",
            "lang": "test",
            "version": "0",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
        }
        self._send(f"CONNECT {json.dumps(fields)}\r\n")
        for sid, kind in enumerate(("echo", "slow", "many", "mute"), 1):
            self._send(f"SUB *.q.{kind}.* {sid}\r\n")
        if not self.sync(10):
            raise AssertionError("the outsider cannot reach the server")

    @property
    def descriptor(self) -> int:
        return int(self._sock.fileno())

    def tell(self, subject: str, payload: str, reply: str = "") -> None:
        """Publish; never waits. When the server is gone nothing happens."""
        data = payload.encode()
        self._send(f"PUB {subject} {reply} {len(data)}\r\n", data + b"\r\n")

    def sync(self, timeout: float) -> bool:
        """Whether the server has processed all that was told, within *timeout* seconds."""
        self._pinged += 1
        wanted, deadline = self._pinged, monotonic() + timeout
        self._send("PING\r\n")
        while self.alive and self._pongs < wanted and monotonic() < deadline:
            self._news.clear()
            self._news.wait(max(0.0, deadline - monotonic()))
        return self.alive and self._pongs >= wanted

    def close(self) -> None:
        self._reader.kill()
        self._sock.close()
        self.alive = False

    def _send(self, head: str, data: bytes = b"") -> None:
        with contextlib.suppress(OSError):
            self._sock.sendall(head.encode() + data)

    def _read(self) -> None:
        data = b""
        try:
            while chunk := self._sock.recv(65536):
                data = self._feed(data + chunk)
        except OSError:
            pass
        finally:
            self.alive = False
            self._news.set()

    def _feed(self, data: bytes) -> bytes:
        while b"\r\n" in data:
            line, rest = data.split(b"\r\n", 1)
            words = line.decode().split()
            verb = words[0].upper() if words else ""
            if verb in ("MSG", "HMSG"):
                size = int(words[-1])
                if len(rest) < size + 2:
                    return data
                payload = rest[int(words[-2]) if verb == "HMSG" else 0 : size]
                rest = rest[size + 2 :]
                reply = words[3] if len(words) == (5 if verb == "MSG" else 6) else ""
                self._answer(words[1].split(".")[2], reply, payload.decode())
            elif verb == "PING":
                self._send("PONG\r\n")
            elif verb == "PONG":
                self._pongs += 1
                self._news.set()
            elif verb == "-ERR":
                raise AssertionError(f"the server refuses the outsider: {line!r}")
            data = rest
        return data

    def _answer(self, kind: str, reply: str, payload: str) -> None:
        if kind == "echo":
            self.tell(reply, f"re:{payload}")
        elif kind == "slow":
            gevent.spawn_later(SLOW_ANSWER, self.tell, reply, f"re:{payload}")
        elif kind == "many":
            for number in range(MANY):
                self.tell(reply, f"re:{payload}:{number}")


class Link(NamedTuple):
    """What the server took over one link of the connection under test, in order."""

    name: str
    published: list[str]  # subjects of whole messages
    subscribed: list[tuple[str, int]]  # sid, and how many messages were published before it
    cut: str  # subject of a message of which only the first line is sure to have come


_LINE = re.compile(r"\[TRC\] \S+ - [cw]id:(\d+) - (?:\".*?\" - )?<<- (.*)$")
_NAME = re.compile(r'"name":"([^"]*)"')


class Journal:
    """The server's log of one run, read as far as it goes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin = path.stat().st_size if path.exists() else 0

    def links(self, name: str) -> list[Link]:
        """The links of the client *name*, in the order in which the server met them. Reads the
        whole run anew; never switches."""
        with self._path.open("rb") as file:
            file.seek(self._begin)
            text = file.read().decode("utf-8", "replace")
        met: dict[tuple[int, int], Link] = {}
        boot = 0
        for line in text.split("\n")[:-1]:
            if "[INF] Starting nats-server" in line:
                boot += 1
            match = _LINE.search(line)
            if match:
                key = boot, int(match[1])
                link = _account(match[2], met.get(key))
                if link is not None:
                    met[key] = link
        return [link for link in met.values() if link.name == name]


def _account(said: str, link: Link | None) -> Link | None:
    """*link* behind one more line that came over it; None for one that is not known."""
    if said.startswith("[CONNECT "):
        match = _NAME.search(said)
        return Link(match[1] if match else "", [], [], "")
    if link is None:
        return None
    # A payload is traced when it has come whole. One of no bytes is not: the next frame proves it.
    if link.cut:
        whole = said.startswith("MSG_PAYLOAD") or link.cut.endswith(" 0")
        if whole:
            link.published.append(link.cut.split()[0])
        link = link._replace(cut="")
    words = said.strip("[]").split()
    if words[0] in ("PUB", "HPUB"):
        link = link._replace(cut=f"{words[1]} {words[-1]}")
    elif words[0] == "SUB":
        link.subscribed.append((words[-1], len(link.published)))
    return link


class World:
    """One server, two proxies in front of it, the outsider; used for many runs, one by one."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="gnats-model-"))
        self._log = self._directory / "trace.log"
        self._websocket = free_port()
        self.authority = str(self._directory / "ca.pem")
        self.server = NatsServer(config=self._config())
        self.proxies: list[ChaosProxy] = []
        self._dead = free_port()
        self.journal: Journal
        self.name = ""
        self._scheme = "nats"
        self._runs = 0

    def _config(self) -> str:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.authority)
        issued = authority.issue_cert("127.0.0.1")
        files = {"cert": issued.cert_chain_pems[0], "key": issued.private_key_pem}
        for name, blob in files.items():
            blob.write_to_path(self._directory / name)
        paths = {name: json.dumps(str(self._directory / name)) for name in files}
        log = json.dumps(str(self._log))
        return _CONFIG.format(log=log, websocket=self._websocket, **paths)

    def __enter__(self) -> World:
        self.server.__enter__()
        self.outside = Outside(self.server.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.outside.close()
        self.server.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def begin(self, rcvbuf: int | None, way: str) -> None:
        """All is well, the proxies are new and in front of *way*, the journal is empty."""
        self.end()
        self.repair()
        self._runs += 1
        self.name = f"r{self._runs}"
        self.journal = Journal(self._log)
        self._scheme = "ws" if way == "ws" else "nats"
        port = self._websocket if way == "ws" else self.server.port
        url = f"nats://127.0.0.1:{port}"
        self.proxies = [ChaosProxy(url, rcvbuf=rcvbuf).start() for _ in range(2)]

    @property
    def urls(self) -> list[str]:
        """Of the proxies."""
        return [proxy.url.replace("nats://", f"{self._scheme}://") for proxy in self.proxies]

    @property
    def dead_url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._dead}"

    def end(self) -> None:
        """Close the proxies."""
        proxies, self.proxies = self.proxies, []
        for proxy in proxies:
            proxy.stop()

    def hurt(self, fault: Callable[[ChaosProxy], object]) -> None:
        for proxy in self.proxies:
            fault(proxy)

    def repair(self) -> None:
        """The server runs, the outsider is there, the proxies are healed. Switches."""
        if self.server.is_paused:
            self.server.resume()
        self.revive()
        for proxy in self.proxies:
            proxy.heal()

    def revive(self) -> None:
        if not self.server.is_running:
            self.server.start()
        if not self.outside.alive:
            self.outside.close()
            self.outside = Outside(self.server.url)

    def kill(self) -> None:
        self.server.kill()
        wait_until(lambda: not self.outside.alive, 10)

    @property
    def links(self) -> list[Link]:
        return self.journal.links(self.name)

    def connections(self) -> list[dict[str, Any]]:
        """What the server holds of the connection under test. Switches. Raises OSError."""
        answer = self.server.monitor("/connz?subs=detail&limit=1000", timeout=10)
        return [one for one in answer["connections"] if one.get("name") == self.name]

    def await_gone(self) -> None:
        """Until the server has ended every link of this run. Switches."""
        wait_until(lambda: not self.connections(), 20, lambda: f"the end of {self.connections()}")
