"""What a script learns from the exit status, and the exceptions that carry one. Values only."""

from __future__ import annotations

import signal

from gnats import errors

DONE = 0  #: all that was asked for is done
FAILED = 1  #: it could not be done: no server, refused, an error of the system
USAGE = 2  #: the command line is wrong; nothing was begun
TIME_IS_UP = 3  #: no answer, or no confirmation, in time
NOBODY = 4  #: nobody listens on the subject of a request
INCOMPLETE = 5  #: done, but messages are uncertain, dropped or missing: the words say how many
#: 128 + the number of the signal: interrupted before it was done; what was accepted is drained
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE  #: whoever read our output has gone

_OF_ERRORS: tuple[tuple[type[Exception], int], ...] = (
    (errors.OptionError, USAGE),
    (errors.BadURLError, USAGE),
    (errors.BadSubjectError, USAGE),
    (errors.HeaderError, USAGE),
    (errors.NoRespondersError, NOBODY),
    (errors.TimeoutError, TIME_IS_UP),
)


class CommandError(Exception):
    """A command cannot go on. The message is for people; ``status`` for scripts."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


class OutputClosed(Exception):
    """Whoever read our output has gone: there is nobody left to say anything to."""


class OutputFailed(CommandError):
    """Standard output takes no more, for a reason that somebody should hear."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP came. Thrown into the main greenlet, only where it waits."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


def status_of(error: Exception) -> int:
    """The exit status for *error*."""
    if isinstance(error, CommandError):
        return error.status
    for kind, status in _OF_ERRORS:
        if isinstance(error, kind):
            return status
    return FAILED
