"""How long a PING takes to each of the servers and back.

What is waiting to be sent goes first; here nothing is.

  gnats rtt
  gnats rtt 20 --json -s nats://one:4222,nats://two:4222
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import gnats
from gnats.cli import exits
from gnats.cli.flags import add_connection, add_output, count, seconds, servers
from gnats.cli.link import connected
from gnats.cli.notices import say
from gnats.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("count", nargs="?", type=count, default=5, help="PINGs to each server (5)")
    parser.add_argument("--timeout", metavar="S", type=seconds, default=5.0, help="for one (5)")
    add_output(parser)
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    failed = 0
    with Output() as output:
        for url in servers(arguments).split(","):
            try:
                facts = _measure(arguments, url.strip())
            except gnats.errors.Error as exc:
                failed = failed or exits.status_of(exc)
                say(f"gnats: {exc}", "error")
                continue
            output.write_json(facts) if arguments.json else output.write(_line(facts))
    return failed or exits.DONE


def _measure(arguments: argparse.Namespace, url: str) -> dict[str, Any]:
    one = argparse.Namespace(**{**vars(arguments), "server": url})
    with connected(one, ignore_discovered_servers=True) as conn:
        times = [conn.rtt(arguments.timeout) for _ in range(arguments.count)]
        info = conn.server_info
        return {
            "server": str(conn.connected_url),
            "name": info.server_name if info is not None else "",
            "count": len(times),
            "min": min(times),
            "median": statistics.median(times),
            "max": max(times),
            "times": times,
        }


def _line(facts: dict[str, Any]) -> bytes:
    low, median, high = (facts[name] * 1000 for name in ("min", "median", "max"))
    text = f"{facts['server']}  {median:.3f} ms median of {facts['count']}"
    return f"{text}  ({low:.3f} to {high:.3f})\n".encode()
