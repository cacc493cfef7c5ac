"""Every error of gnats, under one root. Words only: no I/O, no decisions.

An error carries its facts as attributes and says in its message what to do.
Names follow nats-py where nats-py has one. No error ever holds a credential.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any


class Error(Exception):
    """The root: ``except gnats.errors.Error`` catches all that gnats raises on purpose.

    Errors can be copied and pickled, facts included: task queues send them between processes.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[Error], args: tuple[Any, ...], facts: dict[str, Any]) -> Error:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


# -- bad input: raised in the caller, before anything is half done -----------------------


class OptionError(Error, ValueError):
    """An option has a value that cannot work. ``option`` names it."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"option {option!r}: {message}")
        self.option = option


class OptionTypeError(OptionError, TypeError):
    """An option has a value of the wrong type. ``option`` names it."""


class MissingExtraError(Error, ImportError):
    """Something was asked for that needs an optional package. ``extra`` names it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package: pip install 'gnats[{extra}]'")
        self.extra = extra


class BadURLError(Error, ValueError):
    """A server URL that cannot be used. ``reason`` never repeats a password."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"bad server URL: {reason}")
        self.reason = reason


class BadSubjectError(Error, ValueError):
    """A subject, reply subject or queue name that the protocol forbids."""

    def __init__(self, subject: object, reason: str = "it is malformed", *, what: str = "subject"):
        super().__init__(f"bad {what} {_shorten(subject)}: {reason}")
        self.subject = subject
        self.reason = reason


class HeaderError(Error, ValueError):
    """A header that the protocol forbids, or headers for a server that takes none."""


class MaxPayloadError(Error, ValueError):
    """Payload plus headers are larger than the server takes. Sizes in bytes."""

    def __init__(self, size: int, max_payload: int, subject: str = "") -> None:
        where = f" for subject {_shorten(subject)}" if subject else ""
        super().__init__(
            f"message{where} is {size} bytes with its headers, but the server takes at most "
            f"{max_payload}: split it, or raise max_payload on the server"
        )
        self.size = size
        self.max_payload = max_payload
        self.subject = subject


# -- calls that came at the wrong time ---------------------------------------------------


class ConnectionClosedError(Error):
    """The connection is closed, or was never opened."""

    def __init__(self, message: str = "the connection is closed: make a new one") -> None:
        super().__init__(message)


class ConnectionReconnectingError(Error):
    """The call needs a live link and there is none right now."""

    def __init__(self, operation: str = "this call") -> None:
        super().__init__(
            f"{operation} needs a live link, and the connection has none right now: "
            "try again after reconnected_cb, or wait with wait_for_status('connected')"
        )
        self.operation = operation


class ConnectionDrainingError(Error):
    """The connection is draining: it ends what it has and takes no more."""

    def __init__(self, operation: str = "this call") -> None:
        super().__init__(f"{operation} refused: the connection is draining")
        self.operation = operation


class ForkedConnectionError(ConnectionClosedError):
    """The connection was made before a fork. Calls that were under way in other greenlets end with
    it in the child; with ``reconnect_after_fork=False`` every call does."""

    def __init__(
        self, message: str = "the connection was made before a fork and is the parent's"
    ) -> None:
        super().__init__(message)


class WrongThreadError(Error):
    """The connection belongs to another thread. ``operation`` names what was tried."""

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"{operation}: a connection belongs to the thread that connected it; from another one "
            "only publish, respond and close work. Do it there, or connect here"
        )
        self.operation = operation


class BadSubscriptionError(Error):
    """The subscription has ended. ``subject`` names it."""

    def __init__(self, subject: str, message: str = "") -> None:
        super().__init__(message or f"the subscription to {_shorten(subject)} has ended")
        self.subject = subject


class OutboundBufferLimitError(Error):
    """No room for one more message; nothing of it was kept. Sizes in bytes."""

    def __init__(self, size: int, buffered: int, limit: int, why: str) -> None:
        super().__init__(
            f"no room for a message of {size} bytes ({buffered} of {limit} are pending): {why}"
        )
        self.size = size
        self.buffered = buffered
        self.limit = limit


# -- waits that ended badly --------------------------------------------------------------


class TimeoutError(Error, builtins.TimeoutError):
    """The time given to a call ran out. ``timeout`` is in seconds."""

    def __init__(self, message: str = "timed out", timeout: float | None = None) -> None:
        super().__init__(message)
        self.timeout = timeout


class NoRespondersError(Error):
    """Nobody listens on the subject of a request (status 503, ADR-4)."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"nobody listens on {_shorten(subject)}")
        self.subject = subject


class FlushInterruptedError(Error):
    """The link was lost before the server confirmed a flush or rtt."""

    def __init__(self, message: str = "the link was lost before the server confirmed") -> None:
        super().__init__(message)


class DrainTimeoutError(TimeoutError):
    """A drain did not end in time; the connection or subscription was closed all the same.

    ``pending_msgs`` received messages were not handled; ``buffered_msgs`` published ones had
    not been written.
    """

    def __init__(
        self, timeout: float | None, pending_msgs: int, buffered_msgs: int, why: str = ""
    ) -> None:
        within = "its time" if timeout is None else f"{round(timeout, 3):g} s"
        super().__init__(
            f"drain did not end within {within}{': ' + why if why else ''}; left behind: "
            f"{pending_msgs} received and not handled, {buffered_msgs} published and not written",
            timeout,
        )
        self.pending_msgs = pending_msgs
        self.buffered_msgs = buffered_msgs


# -- the link ----------------------------------------------------------------------------


class TransportError(Error):
    """The socket failed. The operating system's own error is the ``__cause__``."""


class UnexpectedEOF(TransportError):
    """The server closed the link."""

    def __init__(self, message: str = "the server closed the link") -> None:
        super().__init__(message)


class WriteStalledError(TransportError):
    """A send made no progress for ``write_timeout`` seconds."""

    def __init__(self, timeout: float) -> None:
        super().__init__(f"the server took no byte for {timeout} s (write_timeout)")
        self.timeout = timeout


class TLSError(TransportError):
    """TLS failed: no common version, a broken record, a file of ours that cannot be used."""


class CertificateError(TLSError):
    """The server's certificate was not accepted. ``reason`` is OpenSSL's, ``host`` the name that
    it had to be for.
    """

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"the certificate of {host!r} is not accepted: {reason}")
        self.host = host
        self.reason = reason


class StaleConnectionError(Error):
    """The server left ``outstanding`` PINGs unanswered, or called the link stale itself."""

    def __init__(self, message: str = "stale connection", outstanding: int = 0) -> None:
        super().__init__(message)
        self.outstanding = outstanding


class ReconnectForcedError(Error):
    """The cause of a loss that ``force_reconnect()`` asked for."""

    def __init__(self) -> None:
        super().__init__("force_reconnect() was called")


class ProtocolError(Error):
    """The server broke the protocol. ``events`` are what it sent rightly just before."""

    def __init__(self, message: str, events: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.events = list(events)


class NoServersError(Error):
    """No server could be reached. ``failures`` maps each server to its own last failure."""

    def __init__(self, failures: Mapping[str, BaseException] | None = None) -> None:
        self.failures = dict(failures or {})
        each = "; ".join(f"{server}: {exc}" for server, exc in self.failures.items())
        super().__init__(f"no servers available ({each})" if each else "no servers available")


# -- what the server refused -------------------------------------------------------------


class ServerError(Error):
    """An -ERR of the server. ``text`` is the server's own words."""

    def __init__(self, text: str) -> None:
        super().__init__(f"the server says: {text}")
        self.text = text


class AuthorizationError(ServerError):
    """The server refused the credentials."""


class AuthenticationExpiredError(AuthorizationError):
    """The credentials were good and have expired or been revoked."""


class MaxConnectionsError(ServerError):
    """The server or the account has as many connections as it takes."""


class PermissionsError(ServerError):
    """The server forbids one subject. ``operation`` is "publish" or "subscription"."""

    def __init__(self, text: str, operation: str, subject: str, queue: str = "") -> None:
        super().__init__(text)
        self.operation = operation
        self.subject = subject
        self.queue = queue


class FrameRefusedError(ServerError):
    """Server after server closed the link over one frame: it was given up, so that the rest can
    live. ``operation`` is "publish" or "subscription"; ``size`` is the frame's, in bytes.
    """

    def __init__(self, text: str, operation: str, subject: str, size: int) -> None:
        Error.__init__(
            self,
            f"the {operation} for {_shorten(subject)} ({size} bytes) was given up, because the "
            f"link is closed over it each time; the server says: {text}",
        )
        self.text = text
        self.operation = operation
        self.subject = subject
        self.size = size


class CredentialsError(Error):
    """A credentials file or a seed that cannot be used. The message holds nothing of it."""


class NonceMissingError(Error):
    """The server gave no nonce to sign: it takes no nkeys and no JWTs."""

    def __init__(
        self, message: str = "the server takes no nkeys and no JWTs: its INFO has no nonce to sign"
    ) -> None:
        super().__init__(message)


class SecureConnRequiredError(Error):
    """The server wants TLS and the client was not told to use it. Nothing was sent in clear."""


class SecureConnWantedError(Error):
    """TLS was asked for, or was used before on this connection, and the server offers none.
    Nothing was sent in clear.
    """

    def __init__(
        self, message: str = "TLS is wanted and the server offers none; nothing was sent in clear"
    ) -> None:
        super().__init__(message)


# -- the consumer ------------------------------------------------------------------------


class SlowConsumerError(Error):
    """A subscription's queue is full and new messages are dropped; told once per episode."""

    def __init__(self, subject: str, sid: int, pending_msgs: int, pending_bytes: int) -> None:
        super().__init__(
            f"slow consumer on {_shorten(subject)}: {pending_msgs} messages "
            f"({pending_bytes} bytes) pending, new ones are dropped until it catches up"
        )
        self.subject = subject
        self.sid = sid
        self.pending_msgs = pending_msgs
        self.pending_bytes = pending_bytes


class CallbackError(Error):
    """A callback ended with what is no Exception, as gevent.Timeout; it is ``__cause__``."""

    def __init__(self, exc: BaseException) -> None:
        super().__init__(f"a callback ended with {type(exc).__name__}: {exc}")
        self.__cause__ = exc


class HandlerError(Error):
    """A subscription's callback raised; told to ``error_cb``. The exception is ``__cause__``."""

    def __init__(self, subject: str, exc: BaseException) -> None:
        super().__init__(f"the handler of {_shorten(subject)} raised {type(exc).__name__}: {exc}")
        self.subject = subject
        self.__cause__ = exc


def _shorten(value: object) -> str:
    """``repr`` of *value*, cut where a hostile or mistaken caller made it huge."""
    text = repr(value)
    return text if len(text) <= 120 else text[:100] + f"… ({len(text)} characters)"
