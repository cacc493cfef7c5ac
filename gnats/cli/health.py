"""Whether the server takes us and answers, for scripts and container probes.

It connects, asks once, and tells what it found. Exit status 0: healthy; 1: no server, or it refused
us; 3: no answer in time, or slower than --max-rtt.

  gnats health
  gnats health --json --timeout 1 --max-rtt 50ms
"""

from __future__ import annotations

import argparse
from typing import Any

import gevent

import gnats
from gnats.cli import exits
from gnats.cli.flags import add_connection, add_output, seconds, servers
from gnats.cli.link import connected
from gnats.cli.notices import say
from gnats.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", metavar="S", type=seconds, default=5.0, help="for all (5)")
    parser.add_argument("--max-rtt", metavar="S", type=seconds, help="a slower answer is too slow")
    add_output(parser)
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    timeout = arguments.timeout
    late = exits.CommandError(f"no answer within {timeout:g} s", exits.TIME_IS_UP)
    if not hasattr(arguments, "connect_timeout"):
        # Of several, the first must not have it all; of one, the time for all is over before.
        several = len(servers(arguments).split(","))
        arguments.connect_timeout = timeout / several if several > 1 else timeout + 1.0
    with Output() as output:
        try:
            with gevent.Timeout(timeout, late):
                facts = _ask(arguments)
        except (gnats.errors.Error, exits.CommandError) as exc:
            if arguments.json:
                output.write_json({"healthy": False, "error": str(exc)})
            raise
        rtt = facts["rtt"]
        slow = arguments.max_rtt is not None and rtt > arguments.max_rtt
        facts = {"healthy": not slow, **facts}
        output.write_json(facts) if arguments.json else output.write(_text(facts))
        if slow:
            say(f"gnats: {rtt * 1000:.3f} ms is over --max-rtt", "error")
        return exits.TIME_IS_UP if slow else exits.DONE


def _ask(arguments: argparse.Namespace) -> dict[str, Any]:
    with connected(arguments, allow_reconnect=False) as conn:
        rtt = conn.rtt(None)
        info = conn.server_info
        assert info is not None  # there was a link
        return {
            "server": str(conn.connected_url),
            "name": info.server_name,
            "version": info.version,
            "cluster": info.cluster,
            "jetstream": info.jetstream,
            "max_payload": info.max_payload,
            "client_id": info.client_id,
            "rtt": rtt,
        }


def _text(facts: dict[str, Any]) -> bytes:
    words = "healthy" if facts["healthy"] else "too slow"
    cluster = f", cluster {facts['cluster']}" if facts["cluster"] else ""
    return (
        f"{words}: {facts['server']} ({facts['name']}, nats-server {facts['version']}{cluster}), "
        f"{facts['rtt'] * 1000:.3f} ms\n"
    ).encode()
