"""Answer requests, until Ctrl-C or --count requests.

Give the answer as an argument or a file, --echo the request, or let a --command answer: it has the
payload as its standard input, the subject as $NATS_REQUEST_SUBJECT, and answers by its output.

  gnats reply price 42
  gnats reply echo --echo
  gnats reply time --command 'date -u'
"""

from __future__ import annotations

import argparse
import os

from gevent.event import Event
from gevent.subprocess import PIPE, Popen, TimeoutExpired

import gnats
from gnats.cli import exits
from gnats.cli.flags import add_connection, add_output, check_filter, count, seconds
from gnats.cli.link import Refusals, confirm, connected, listen
from gnats.cli.notices import say
from gnats.cli.output import Output, as_json, as_raw, as_text
from gnats.cli.payloads import SEVERAL_WORDS, add_headers, check_payload, fill_in, payloads

UNKNOWN = SEVERAL_WORDS
_QUEUE = "gnats-reply"
_AT_ONCE = 8  # commands
_MOST_ERROR = 200  # characters of a command's complaint that go into a header


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject")
    parser.add_argument(
        "payload", nargs="?", help="the answer; {{Request}}, {{Count}}, {{Time}} are filled in"
    )
    parser.add_argument("-f", "--file", metavar="FILE", help="the answer is in FILE")
    parser.add_argument("--echo", action="store_true", help="answer with the request's payload")
    parser.add_argument("--command", metavar="SHELL", help="answer with what this prints")
    parser.add_argument(
        "--command-timeout", metavar="S", type=seconds, default=30.0, help="for one of it (30)"
    )
    add_headers(parser)
    parser.add_argument(
        "--queue", metavar="NAME", default=_QUEUE, help=f"the queue group, '' for none ({_QUEUE})"
    )
    parser.add_argument("-n", "--count", type=count, default=0, help="end after so many requests")
    add_output(parser, raw=True)
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    sources = [arguments.payload, arguments.file, arguments.echo or None, arguments.command]
    if sum(source is not None for source in sources) != 1:
        raise exits.CommandError(
            "one answer is needed: a payload, --file, --echo or --command", exits.USAGE
        )
    check_filter(arguments.subject, arguments.queue)
    if arguments.file is not None:
        check_payload(arguments, 1)
    refusals = Refusals()
    with Output() as output, connected(arguments, refusals) as conn:
        service = Service(arguments, output)
        conn.subscribe(
            arguments.subject,
            queue=arguments.queue,
            cb=service.answer,
            max_msgs=arguments.count,
            concurrency=_AT_ONCE if arguments.command is not None else 1,
        )
        confirm(conn)
        if not arguments.quiet:
            say(f"answering on {arguments.subject}", "faint")
        return listen(arguments, service.over, refusals, output)


class Service:
    """Makes the answers, and shows the requests."""

    def __init__(self, arguments: argparse.Namespace, output: Output) -> None:
        self.over = Event()
        self._arguments = arguments
        self._output = output
        self._taken = self._answered = 0
        self._file = next(payloads(arguments, 1)) if arguments.file is not None else b""

    def answer(self, msg: gnats.Msg) -> None:
        self._taken += 1
        number = self._taken
        self._show(msg, number)
        if msg.reply:
            answer, headers = self._make(msg, number)
            msg.respond(answer, headers or None)
        elif not self._arguments.quiet:
            say(f"message {number} wants no answer", "faint")
        self._answered += 1
        if self._answered == self._arguments.count:
            self.over.set()

    def _make(self, msg: gnats.Msg, number: int) -> tuple[bytes, list[tuple[str, str]]]:
        arguments = self._arguments
        if arguments.command is not None:
            answer, failure = self._run_command(msg)
            return answer, [*arguments.header, *failure]
        if arguments.echo:
            return msg.data, arguments.header
        if arguments.file is not None:
            return self._file, arguments.header
        return fill_in(arguments.payload, number, msg.data), arguments.header

    def _run_command(self, msg: gnats.Msg) -> tuple[bytes, list[tuple[str, str]]]:
        """Its output; and, when it fails, the headers that tell so (ADR-32's names)."""
        arguments = self._arguments
        process = Popen(
            arguments.command,
            shell=True,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,  # Ctrl-C is for us: what was begun is finished
            env={**os.environ, "NATS_REQUEST_SUBJECT": msg.subject},
        )
        try:
            answer, complaint = process.communicate(msg.data, timeout=arguments.command_timeout)
        except TimeoutExpired:
            os.killpg(process.pid, 9)
            answer, complaint = process.communicate()
            complaint = b"it took longer than %g s" % arguments.command_timeout
        if process.returncode == 0:
            return bytes(answer), []
        text = " ".join(complaint.decode("utf-8", "replace").split())[:_MOST_ERROR]
        say(f"gnats: the command failed ({process.returncode}): {text}", "error")
        return bytes(answer), [
            ("Nats-Service-Error-Code", str(process.returncode)),
            ("Nats-Service-Error", text or "the command failed"),
        ]

    def _show(self, msg: gnats.Msg, number: int) -> None:
        if self._arguments.json:
            self._output.write_json(as_json(msg, number=number))
        elif self._arguments.raw:
            self._output.write(as_raw(msg))
        elif not self._arguments.quiet:
            self._output.write(as_text(msg, f"[#{number}] request"))
