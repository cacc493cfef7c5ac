"""``python -m tests.soak``: exit code 0 when all was as promised, 1 when something is off."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import traceback

import gevent

from .course import Course
from .summary import lines


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    say(f"seed {options.seed}: repeat with --seed {options.seed}; Ctrl-C ends it in good order")
    course = Course(options.seed, options.minutes, say, options.tls)
    # Not KeyboardInterrupt: it would strike any greenlet, one of the client's, too.
    on_interrupt = gevent.signal_handler(signal.SIGINT, _interrupt, course)
    try:
        course.run()
    except (Exception, gevent.Timeout) as error:  # whatever ended it: tell what there is, and fail
        traceback.print_exc()
        course.found(f"it broke off: {error!r}")
    finally:
        on_interrupt.cancel()
    for line in lines(course):
        say(line)
    return 1 if course.findings else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--seed", default=os.environ.get("GNATS_SEED") or secrets.token_hex(4))
    parser.add_argument("--tls", action="store_true", help="every link is TLS")
    return parser.parse_args(arguments)


def _interrupt(course: Course) -> None:
    """In the hub. The second time it is meant at once."""
    if course.stop.is_set():
        raise SystemExit(1)  # gevent raises it in the main greenlet: servers are still ended
    say("interrupted: settling all accounts, once more to leave at once")
    course.stop.set()


if __name__ == "__main__":
    sys.exit(main())
