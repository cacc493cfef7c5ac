"""Answer requests, until Ctrl-C or --count requests.

Give the answer as an argument or a file, --echo the request, or let a --command answer: it has the
payload as its standard input, the subject as $NATS_REQUEST_SUBJECT, and answers by its output.

  gnats reply price 42
  gnats reply echo --echo
  gnats reply time --command 'date -u'
"""

from __future__ import annotations

import argparse
import contextlib

from gevent.event import Event

import gnats
from gnats.cli import exits
from gnats.cli.flags import add_connection, add_output, check_filter, count, seconds
from gnats.cli.link import Refusals, confirm, connected, listen, patiently
from gnats.cli.notices import harmless, say
from gnats.cli.output import Output, as_json, as_raw, as_text
from gnats.cli.payloads import SEVERAL_WORDS, add_headers, check_payload, fill_in, payloads
from gnats.cli.shell import Answer, Shell

UNKNOWN = SEVERAL_WORDS
_QUEUE = "gnats-reply"
_AT_ONCE = 8  # commands
_CONFIRM = 10.0  # seconds for the server to take the last answers
_MOST_ERROR = 200  # characters of a command's complaint that go into a header
_MOST_WORDS = 300  # of it that are told here


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
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(Output())
        shell = Shell()
        stack.callback(shell.kill_all)  # what still runs when the connection has been left
        conn = stack.enter_context(
            connected(arguments, refusals, drains=True, **_time_to_drain(arguments))
        )
        service = Service(arguments, output, shell, conn)
        conn.subscribe(
            arguments.subject,
            queue=arguments.queue,
            cb=service.answer,
            max_msgs=arguments.count,
            concurrency=_AT_ONCE if arguments.command is not None else 1,
        )
        confirm(conn)
        if not arguments.quiet and not refusals.happened.is_set():
            say(f"answering on {arguments.subject}", "faint")
        status = listen(arguments, service.over, refusals, output)
        if status == exits.DONE and service.over.is_set():
            _confirm_answers(conn)
    return refusals.judge(status)


def _time_to_drain(arguments: argparse.Namespace) -> dict[str, float]:
    """A command under way has its time."""
    if arguments.command is None:
        return {}
    return {"drain_timeout": arguments.command_timeout + _CONFIRM}


def _confirm_answers(conn: gnats.Connection) -> None:
    """The last ones, too, through an outage."""
    try:
        confirm(conn, _CONFIRM)
    except gnats.errors.TimeoutError as exc:
        raise exits.CommandError(
            f"no confirmation of the answers within {_CONFIRM:g} s", exits.INCOMPLETE
        ) from exc


def _headers(answer: Answer) -> list[tuple[str, str]]:
    """What tells of a failure (ADR-32's names)."""
    if answer.failure is None:
        return []
    status, words = answer.failure
    words = harmless(" ".join(words.split()))[:_MOST_ERROR]
    return [("Nats-Service-Error-Code", status), ("Nats-Service-Error", words)]


def _complain(answer: Answer) -> None:
    if answer.failure is not None:
        status, words = answer.failure
        say(f"gnats: the command failed ({status}): {words}"[:_MOST_WORDS], "error")


class Service:
    """Makes the answers, and shows the requests."""

    def __init__(
        self, arguments: argparse.Namespace, output: Output, shell: Shell, conn: gnats.Connection
    ) -> None:
        self.over = Event()
        self._arguments = arguments
        self._output = output
        self._taken = self._answered = 0
        self._conn = conn
        self._file = b""
        if arguments.file is not None:
            self._file = next(payloads(arguments, 1, conn.max_payload))
        self._shell = shell

    def answer(self, msg: gnats.Msg) -> None:
        """Answer *msg*, in any case: who asks must not wait for what has failed here."""
        self._taken += 1
        number = self._taken
        try:
            self._show(msg, number)
        finally:
            try:
                self._respond(msg, number)
            finally:
                self._answered += 1
                if self._answered == self._arguments.count:
                    self.over.set()

    def _respond(self, msg: gnats.Msg, number: int) -> None:
        if not msg.reply:
            if not self._arguments.quiet:
                say(f"message {number} wants no answer", "faint")
            return
        answer = self._make(msg, number)
        _complain(answer)
        headers = [*self._arguments.header, *_headers(answer)]
        try:
            patiently(self._conn, msg.respond, answer.data, headers or None)
        except gnats.errors.MaxPayloadError as exc:
            say(f"gnats: {exc}", "error")
            too_long = Answer(b"", ("1", "the answer is too long"))
            patiently(self._conn, msg.respond, b"", _headers(too_long))

    def _make(self, msg: gnats.Msg, number: int) -> Answer:
        arguments = self._arguments
        if arguments.command is not None:
            return self._shell.run(
                arguments.command,
                msg.data,
                arguments.command_timeout,
                self._conn.max_payload,
                NATS_REQUEST_SUBJECT=msg.subject,
            )
        if arguments.echo:
            return Answer(msg.data)
        if arguments.file is not None:
            return Answer(self._file)
        return Answer(fill_in(arguments.payload, number, msg.data))

    def _show(self, msg: gnats.Msg, number: int) -> None:
        if self._arguments.json:
            self._output.write_json(as_json(msg, number=number))
        elif self._arguments.raw:
            self._output.write(as_raw(msg))
        elif not self._arguments.quiet:
            self._output.write(as_text(msg, f"[#{number}] request"))
