"""Ask, and show the answers.

Exit status 3: no answer in time, outages included; 4: nobody listens.

  gnats request price apples
  gnats request price apples --raw --timeout 5
  gnats request status --replies 3        (or as many as come: --replies 0)
"""

from __future__ import annotations

import argparse
import contextlib
import time

import gnats
from gnats.cli import exits
from gnats.cli.flags import add_connection, add_output, check_subject, count, seconds
from gnats.cli.link import connected
from gnats.cli.notices import plural, say
from gnats.cli.output import Output, as_json, as_raw, as_text
from gnats.cli.payloads import SEVERAL_WORDS, add_payload, check_payload, payloads

UNKNOWN = SEVERAL_WORDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject")
    add_payload(parser)
    parser.add_argument("-n", "--count", type=count, default=1, help="ask so many times (1)")
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, default=2.0, help="for each request (2)"
    )
    parser.add_argument(
        "--replies",
        metavar="N",
        type=_replies,
        default=1,
        help="wait for so many answers; 0: for all that come in time (1)",
    )
    parser.add_argument(
        "--stall", metavar="S", type=seconds, help="so long after an answer no more are expected"
    )
    add_output(parser, raw=True)
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    check_subject(arguments.subject)
    check_payload(arguments, arguments.count)
    with Output() as output, connected(arguments) as conn:
        for payload in payloads(arguments, arguments.count, conn.max_payload):
            if arguments.replies == 1 and arguments.stall is None:
                _ask_one(conn, arguments, payload, output)
            else:
                _ask_many(conn, arguments, payload, output)
    return exits.DONE


def _ask_one(
    conn: gnats.Connection, arguments: argparse.Namespace, payload: bytes, output: Output
) -> None:
    began = time.monotonic()
    headers = arguments.header or None
    msg = conn.request(arguments.subject, payload, arguments.timeout, headers)
    _show(arguments, msg, time.monotonic() - began, output)


def _ask_many(
    conn: gnats.Connection, arguments: argparse.Namespace, payload: bytes, output: Output
) -> None:
    """Raises CommandError when fewer came than were asked for, or none at all."""
    began, came = time.monotonic(), 0
    replies = conn.request_many(
        arguments.subject,
        payload,
        arguments.timeout,
        arguments.header or None,
        stall=arguments.stall,
        max_msgs=arguments.replies,
    )
    with contextlib.closing(replies):
        for msg in replies:
            came += 1
            _show(arguments, msg, time.monotonic() - began, output)
    if came < max(1, arguments.replies):
        wanted = f" of {arguments.replies}" if arguments.replies else ""
        raise exits.CommandError(
            f"{came}{wanted} answers after {time.monotonic() - began:.3g} s", exits.TIME_IS_UP
        )
    if not arguments.replies and not arguments.quiet:
        say(plural(came, "answer"), "faint")


def _show(arguments: argparse.Namespace, msg: gnats.Msg, took: float, output: Output) -> None:
    if arguments.json:
        output.write_json(as_json(msg, seconds=round(took, 6)))
    elif arguments.raw:
        output.write(as_raw(msg))
    else:
        output.write(as_text(msg, f"answer after {took * 1000:.2f} ms"))


def _replies(text: str) -> int:
    return 0 if text == "0" else count(text)
