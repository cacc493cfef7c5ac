"""Show the messages of subjects.

It goes on until --count messages have come, --timeout is over, or Ctrl-C, which drains. A lost
server is looked for again, with all subscriptions.

  gnats sub 'orders.>'
  gnats sub orders.new --queue workers --raw --count 10
  gnats sub 'orders.>' --json | jq .subject
"""

from __future__ import annotations

import argparse

from gevent.event import Event

import gnats
from gnats.cli import exits
from gnats.cli.flags import add_connection, add_output, check_filter, count, seconds
from gnats.cli.link import Deadline, Refusals, confirm, connected, listen
from gnats.cli.notices import plural, say
from gnats.cli.output import Output, as_json, as_raw, as_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", nargs="+")
    parser.add_argument("--queue", metavar="NAME", default="", help="be one of a queue group")
    parser.add_argument("-n", "--count", type=count, default=0, help="end after so many messages")
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, help="end after so long (status 3 with --count)"
    )
    add_output(parser, raw=True)
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    for subject in arguments.subject:
        check_filter(subject, arguments.queue)
    refusals = Refusals()
    left = Deadline(arguments.timeout)
    with (
        Output() as output,
        connected(arguments, refusals, drains=True, patience=left.seconds()) as conn,
    ):
        printer = Printer(arguments, output, "received")
        # The server then sends no more than that, which a queue group would miss. Of several
        # subjects nobody knows which one will bring them.
        most = arguments.count if len(arguments.subject) == 1 else 0
        for subject in arguments.subject:
            conn.subscribe(subject, queue=arguments.queue, cb=printer.take, max_msgs=most)
        confirm(conn, left.seconds())
        if not arguments.quiet and not refusals.happened.is_set():
            say(f"listening on {', '.join(arguments.subject)}", "faint")
        status = _wait(arguments, printer, refusals, left)
    return refusals.judge(status)


def _wait(
    arguments: argparse.Namespace, printer: Printer, refusals: Refusals, left: Deadline
) -> int:
    """Until it is over; the exit status. What is here by then is still shown, while we drain."""
    status = listen(arguments, printer.over, refusals, printer.output, left.seconds())
    if status == exits.TIME_IS_UP:
        say(f"time is up: {printer.number} of {plural(arguments.count, 'message')}", "error")
    return status


class Printer:
    """Shows messages as the flags want it, and sets ``over`` when enough have come."""

    def __init__(self, arguments: argparse.Namespace, output: Output, title: str) -> None:
        self.number = 0
        self.over = Event()
        self.output = output
        self._arguments = arguments
        self._title = title
        self._most = arguments.count

    def take(self, msg: gnats.Msg) -> None:
        """Show *msg*, unless there were enough already."""
        if self._most and self.number >= self._most:
            return
        self.number += 1
        self.show(msg)
        if self.number == self._most:
            self.over.set()

    def show(self, msg: gnats.Msg) -> None:
        if self._arguments.json:
            self.output.write_json(as_json(msg, number=self.number))
        elif self._arguments.raw:
            self.output.write(as_raw(msg))
        else:
            self.output.write(as_text(msg, f"[#{self.number}] {self._title}"))
