"""Runs the cases: one server, one feeder, one responder, and a new process per measurement.

Clients take turns within a round, and the first to go changes from round to round, so that a
machine that slows down slows down all of them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import trustme
from gevent.subprocess import PIPE, Popen

from benchmarks.cases import Case
from benchmarks.peers import Client, environ_of
from benchmarks.wire import CA_FILE
from gnats.testing import NatsServer, free_port

__all__ = ["Outcome", "run"]

ROOT = Path(__file__).resolve().parent.parent
SUBJECT = "bench.subject"
#: The works of which slow clients do a part, see ``Client.share``.
SHARED = ("publish", "receive", "both", "concurrent")
#: Seconds that one measurement may take, start of the process included; more for many messages.
PATIENCE = 120.0


class ProgramError(RuntimeError):
    """A measured program, the feeder or the responder did not do its part."""


class Program:
    """A process; it talks in lines."""

    def __init__(self, name: str, command: list[str], environ: dict[str, str]) -> None:
        self._name = name
        self._process = Popen(
            command, stdin=PIPE, stdout=PIPE, cwd=ROOT, env=environ, universal_newlines=True
        )

    def read(self) -> str:
        """The next line. Switches. Raises ProgramError at the end."""
        line: str = self._process.stdout.readline()
        if not line:
            raise ProgramError(f"{self._name} ended without a result, see above")
        return line.strip()

    def write(self, line: str) -> None:
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise ProgramError(f"{self._name} has ended, see above") from exc

    def finish(self) -> None:
        """Wait until it ends by itself. Switches."""
        self._process.wait()

    def close(self) -> None:
        """End it now if it still runs, and reap it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout):
            try:
                end.close()
            except OSError:
                pass  # what was to be written to it


class Outcome(NamedTuple):
    """Everything measured; ``results[case][client]`` has an entry per round, None for a failure."""

    server_version: str
    results: dict[str, dict[str, list[dict[str, Any] | None]]]
    errors: list[str]


def run(
    cases: Sequence[Case],
    clients: dict[str, Client],
    rounds: int,
    scale: float,
    progress: Callable[[str], None],
) -> Outcome:
    """Measure *cases* with those of *clients* that take part in them. Switches."""
    errors: list[str] = []
    results: dict[str, dict[str, list[dict[str, Any] | None]]] = {
        case.name: {name: [] for name in case.clients if name in clients} for case in cases
    }
    with ExitStack() as stack:
        ws_port = free_port()
        config = f'websocket {{ port: {ws_port}, host: "127.0.0.1", no_tls: true }}'
        server = stack.enter_context(NatsServer(config=config))
        secure = stack.enter_context(secure_server())
        urls = {
            "tcp": server.url,
            "ws": f"ws://127.0.0.1:{ws_port}",
            "tls": secure.url.replace("nats://", "tls://"),
        }
        feeder, _ = _started(stack, "benchmarks.feeder", server.url)
        tls_feeder, _ = _started(stack, "benchmarks.feeder", urls["tls"])
        responder, _ = _started(stack, "benchmarks.responder", server.url, SUBJECT + ".answered")
        gate, address = _started(stack, "benchmarks.gate", server.url)
        feeders = {"tcp": feeder, "ws": feeder, "tls": tls_feeder}
        urls["gate"] = json.loads(address)["url"]
        helpers = Helpers(urls, feeders, responder, gate)
        for number in range(rounds):
            for case in cases:
                for name in _turned(list(results[case.name]), number):
                    progress(f"round {number + 1}/{rounds}: {case.name}, {name}")
                    share = clients[name].share if case.work in SHARED else 1.0
                    count = max(1, int(case.count * scale * share))
                    try:
                        result = _measure(case, clients[name], count, helpers)
                    except ProgramError as exc:
                        errors.append(f"{case.name}, {name}, round {number + 1}: {exc}")
                        result = None
                    results[case.name][name].append(result)
        return Outcome(server.varz()["version"], results, errors)


class Helpers(NamedTuple):
    """The independent processes at the other end."""

    urls: dict[str, str]  # by the kind of link
    feeders: dict[str, Program]
    responder: Program
    gate: Program


def _started(stack: ExitStack, module: str, *args: str) -> tuple[Program, str]:
    """The program, and the line with which it said that it is ready."""
    command = [sys.executable, "-m", module, *args]
    program = stack.enter_context(closing(Program(module, command, dict(os.environ))))
    with _bound(f"{module} is not ready"):
        return program, program.read()


def _measure(case: Case, client: Client, count: int, helpers: Helpers) -> dict[str, Any]:
    # Each its own: what is left of one measurement must not reach the next.
    subject = SUBJECT + (".answered" if case.answered else f".{case.name}")
    flood = {"subject": subject, "count": count, "size": case.size, "headers": case.headers}
    flood["subjects"] = case.subjects
    job = {**flood, "work": case.work, "url": helpers.urls["gate" if case.cut else case.over]}
    job.update({"subscriptions": case.subscriptions, "requesters": case.requesters})
    command = [*client.command, json.dumps(job)]
    if case.work == "import":
        command = [sys.executable, "-m", "benchmarks.clients.importing"]
        command += [client.package, str(count)]
    with closing(Program(client.module, command, environ_of(client))) as program:
        patience = PATIENCE + count / 50_000
        with _bound(f"no result within {patience:g} s", patience):
            times: dict[str, float] = {}
            if case.fed:
                program.read()
                helpers.feeders[case.over].write(json.dumps(flood))
                helpers.feeders[case.over].read()
            if case.cut:
                times = _outage(program, helpers.gate)
            result: dict[str, Any] = json.loads(program.read())
            program.finish()
    opened = times.pop("opened", 0.0)
    return {**result, **{name: at - opened for name, at in _moments(result, times)}}


@contextmanager
def secure_server() -> Iterator[NatsServer]:
    """A server with TLS, and in the environment of the programs where its authority is."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="gnats-bench-") as folder:
        authority.cert_pem.write_to_path(os.path.join(folder, "ca.pem"))
        issued.cert_chain_pems[0].write_to_path(os.path.join(folder, "cert.pem"))
        issued.private_key_pem.write_to_path(os.path.join(folder, "key.pem"))
        os.environ[CA_FILE] = os.path.join(folder, "ca.pem")
        config = f'tls {{ cert_file: "{folder}/cert.pem", key_file: "{folder}/key.pem" }}'
        with NatsServer(config=config) as server:
            yield server


def _outage(program: Program, gate: Program) -> dict[str, float]:
    """Shut the gate under a client, open it once the client's buffer is filled; when what was."""
    program.read()
    gate.write("shut")
    gate.read()
    program.read()
    gate.write("open")
    return {**json.loads(gate.read()), **json.loads(gate.read())}


def _moments(result: dict[str, Any], times: dict[str, float]) -> list[tuple[str, float]]:
    if not times:
        return []
    return [*times.items(), ("back", result["back"]), ("confirmed", result["confirmed"])]


def _turned(names: list[str], number: int) -> list[str]:
    first = number % len(names) if names else 0
    return names[first:] + names[:first]


@contextmanager
def _bound(what: str, seconds: float = PATIENCE) -> Iterator[None]:
    limit = gevent.Timeout.start_new(seconds)
    try:
        yield
    except gevent.Timeout as exc:
        if exc is not limit:
            raise
        raise ProgramError(what) from None
    finally:
        limit.close()
