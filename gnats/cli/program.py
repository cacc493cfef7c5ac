"""The command line as a whole: its parser, its signals, and the exit status at the end."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType, ModuleType
from typing import Any

import gevent

import gnats
from gnats import errors
from gnats.cli import bench, demo, exits, health, pub, reply, request, rtt, server, sub
from gnats.cli.flags import add_connection
from gnats.cli.notices import say

#: In the order of the help.
COMMANDS: tuple[ModuleType, ...] = (pub, sub, request, reply, rtt, bench, server, health, demo)

_EPILOG = """\
exit status: 0 done, 1 failed, 2 wrong usage, 3 time is up, 4 nobody listens,
5 messages are uncertain or missing, 130 interrupted before it was done.
`gnats COMMAND --help` tells of each command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; *argv* is without the program's name. Returns the exit status."""
    try:
        arguments = _parse(argv)
    except BrokenPipeError:  # `--help | head -1`
        _forget_output()
        return exits.BROKEN_PIPE
    except OSError as exc:  # of --help, to a full disk
        say(f"gnats: standard output: {exc.strerror}", "error")
        _forget_output()
        return exits.FAILED
    logging.getLogger("gnats").addHandler(logging.NullHandler())  # the notices say it all
    try:
        with _signals():
            return int(arguments.run(arguments))
    except exits.Interrupted as interrupted:
        return interrupted.status
    except (exits.OutputClosed, BrokenPipeError):
        _forget_output()
        return exits.BROKEN_PIPE
    except errors.NoServersError as exc:
        say(f"gnats: {exc}{_cure(exc)}", "error")
        return exits.status_of(exc)
    except (exits.CommandError, errors.Error, OSError) as exc:
        say(f"gnats: {exc}", "error")
        return exits.status_of(exc)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; what is not known is told with the usage of its command."""
    try:
        arguments, unknown = parser().parse_known_args(argv)
    except SystemExit:
        if sys.stdout is not None:
            sys.stdout.flush()
        raise
    if unknown:
        hint = getattr(arguments.module, "UNKNOWN", "")
        if "--" in unknown:
            hint = "beside --, flags stand before all other arguments"
        arguments.parser.error(f"unrecognized: {' '.join(unknown)}{hint and f' ({hint})'}")
    return arguments


def _cure(error: errors.NoServersError) -> str:
    """What to do where simply nobody listens."""
    causes = [cause.__cause__ for cause in error.failures.values()]
    if not causes or not all(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return ""
    return "\n  `gnats server` starts one; -s or $NATS_URL names another; --retry waits for it"


def parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    whole = argparse.ArgumentParser(
        prog="gnats",
        description="Publish, subscribe, ask and measure over NATS; reconnects by itself.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"gnats {gnats.__version__} ({'compiled' if gnats.compiled else 'pure Python'})"
    whole.add_argument("--version", action="version", version=version)
    add_connection(whole)
    commands = whole.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Intermixed
    )
    for module in COMMANDS:
        summary, _, more = (module.__doc__ or "").partition("\n\n")
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=summary.rstrip("."),
            description=f"{summary}\n\n{more}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, module=module, parser=command)
    return whole


class _Intermixed(argparse.ArgumentParser):
    """One whose flags may stand between its other arguments."""

    _is_within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Python's own does it this way, but not for a command of another parser."""
        if self._is_within or (args and "--" in args):  # what stands behind it would be lost
            return super().parse_known_args(args, namespace)
        self._is_within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_within = False


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """The first signal lets the command end in good order; the second cuts that short, by the same
    way; the third is the system's: it ends us wherever we are."""
    before = {
        signum: signal.getsignal(signum)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signum) is not signal.SIG_IGN  # nohup, a shell's background job
    }
    main_greenlet = gevent.getcurrent()
    loop = gevent.get_hub().loop

    came = 0

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        nonlocal came
        came += 1
        if came > 1:
            for each in before:
                signal.signal(each, signal.SIG_DFL)
        # Not here, in the midst of whatever greenlet runs: where the main one waits.
        loop.run_callback_threadsafe(main_greenlet.throw, exits.Interrupted(signum))

    try:
        for signum in before:
            signal.signal(signum, interrupt)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _forget_output() -> None:
    """Nobody reads standard output: do not let the interpreter fail at its end for that."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
