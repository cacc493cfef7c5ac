"""Publish messages.

A lost server is looked for again, publishing goes on meanwhile. At the end it waits until the
server has processed all. Exit status 5: some are uncertain, that is under way when a server died.

  gnats pub orders.new 'two apples'
  gnats pub orders.new -H 'Trace: 7' --file order.json
  tail -f app.log | gnats pub logs.app --lines
  gnats pub tick 'number {{Count}}' --count 1000 --sleep 10ms
"""

from __future__ import annotations

import argparse
import time

import gevent

import gnats
from gnats.cli import exits
from gnats.cli.flags import add_connection, add_output, check_subject, count, seconds
from gnats.cli.link import Refusals, confirm, connected, patiently
from gnats.cli.notices import plural, say
from gnats.cli.output import Output
from gnats.cli.payloads import SEVERAL_WORDS, add_payload, check_payload, is_typed, payloads
from gnats.cli.progress import progress

UNKNOWN = SEVERAL_WORDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject")
    add_payload(parser, lines=True)
    parser.add_argument("-n", "--count", type=count, default=1, help="so many messages (1)")
    parser.add_argument("--sleep", metavar="S", type=seconds, default=0.0, help="between two")
    parser.add_argument("--reply", metavar="SUBJECT", default="", help="where answers should go")
    parser.add_argument(
        "--at-least-once",
        action="store_true",
        help="send again what a lost server had not confirmed: some may come twice",
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=seconds,
        default=30.0,
        help="to wait at the end for the server's confirmation, outages included (30)",
    )
    add_output(parser)
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    check_subject(arguments.subject)
    check_payload(arguments, arguments.count)
    began, refusals = time.monotonic(), Refusals()
    with connected(arguments, refusals, replay_unconfirmed=arguments.at_least_once) as conn:
        try:
            _publish(conn, arguments)
        except exits.Interrupted:
            say(f"interrupted after {plural(conn.stats.accepted, 'message')}", "lost")
            raise
        _confirm(conn, arguments.timeout)
        _report(arguments, conn.stats, time.monotonic() - began)
    uncertain = conn.stats.uncertain
    if uncertain:
        say(f"gnats: {plural(uncertain, 'message')} uncertain: a server died over it", "error")
    return refusals.judge(exits.INCOMPLETE if uncertain else exits.DONE)


def _publish(conn: gnats.Connection, arguments: argparse.Namespace) -> None:
    headers = arguments.header or None
    total = None if arguments.lines else arguments.count
    quiet = arguments.quiet or is_typed(arguments)  # who types needs no bar in between
    with progress("published", total, lambda: conn.stats.accepted, quiet):
        for number, payload in enumerate(payloads(arguments, arguments.count, conn.max_payload)):
            if arguments.sleep and number:
                gevent.sleep(arguments.sleep)
            patiently(conn, conn.publish, arguments.subject, payload, arguments.reply, headers)


def _confirm(conn: gnats.Connection, timeout: float) -> None:
    try:
        confirm(conn, timeout)
    except gnats.errors.TimeoutError as exc:
        stats = conn.stats
        raise exits.CommandError(
            f"no confirmation within {timeout:g} s: {stats.buffered} of "
            f"{plural(stats.accepted, 'message')} were not written, "
            f"{stats.uncertain} are uncertain",
            exits.TIME_IS_UP,
        ) from exc


def _report(arguments: argparse.Namespace, stats: gnats.Stats, elapsed: float) -> None:
    if arguments.json:
        with Output() as output:
            output.write_json(
                {
                    "subject": arguments.subject,
                    "published": stats.accepted,
                    "bytes": stats.out_bytes,
                    "uncertain": stats.uncertain,
                    "dropped": stats.dropped,
                    "replayed": stats.replayed,
                    "reconnects": stats.reconnects,
                    "seconds": round(elapsed, 6),
                }
            )
    elif not arguments.quiet:
        size = f"{plural(stats.accepted, 'message')}, {plural(stats.out_bytes, 'byte')}"
        say(f'published {size}, to "{arguments.subject}"')
