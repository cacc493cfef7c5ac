"""Every option, grouped, frozen, checked when built. Values only. Seconds and bytes.

``from_fields`` turns flat keywords into the grouped form; names never collide.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from .backoff import LONGEST
from .errors import BadSubjectError, OptionError, OptionTypeError
from .metrics import Observer
from .subjects import encode_subject
from .url import Servers, ServerURL, parse_servers

#: The largest count, or number of bytes: sums of two fit 64 bits, which the compiled parts have.
LARGEST = 2**62

_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

Secret = Union[str, Callable[[], str], None]
Path = Union[str, "os.PathLike[str]"]
#: A .creds file, its text, or (file of the JWT, file of the seed).
Creds = Union[Path, tuple[Path, Path]]


@dataclass(frozen=True)
class ReconnectOptions:
    """What to do when the link is lost. Source: DESIGN 3.2 to 3.4, ADR-40."""

    allow_reconnect: bool = True  #: False: the connection closes when it loses its link
    #: Failed attempts per server in one outage; -1: never give up, 0: do not reconnect.
    max_reconnect: int = 60
    #: Seconds to wait after each full cycle of the pool; the first cycle does not wait.
    reconnect_wait: float = 2.0
    #: Set: the wait doubles per cycle up to it. None: the wait is flat.
    reconnect_max_wait: float | None = None
    #: Top of a uniform random addition to every wait, in seconds.
    reconnect_jitter: float = 0.1
    #: The same for a pool that uses TLS.
    reconnect_jitter_tls: float = 1.0
    #: Bytes that publish accepts while there is no link; 0: none, publish raises at once.
    reconnect_buf_size: int = 8 * 1024 * 1024
    #: ``cb(cycles) -> seconds``, asked once per full cycle instead of the above.
    custom_reconnect_delay_cb: Callable[[int], float] | None = None
    #: ``cb(servers, info) -> (server, seconds)``: which server to try next, and the wait before
    #: it, instead of the line and the waits above. *servers* are those that may be tried, *info*
    #: is the last server's INFO. If it fails, the line decides. Source: ADR-40.
    select_server_cb: Callable[[list[ServerURL], Any], tuple[ServerURL, float]] | None = None
    #: When the server says that it is going away (lame duck), move to another one of the pool
    #: before it does, without a gap; False: only ``lame_duck_cb`` is called.
    lame_duck_move: bool = True
    #: In a forked child: make a link of its own. False: every call raises ForkedConnectionError.
    reconnect_after_fork: bool = True
    #: At-least-once publishing: keep messages until a PONG behind them, replay them on loss.
    replay_unconfirmed: bool = False
    #: First connect: return at once and go on trying in the background.
    retry_on_failed_connect: bool = False
    #: Do not give up when one server answers with the same auth error twice.
    ignore_auth_error_abort: bool = False
    #: Do not add the servers that INFO announces.
    ignore_discovered_servers: bool = False
    #: Shuffle the configured servers; otherwise their order is the order of preference.
    randomize_servers: bool = False

    def __post_init__(self) -> None:
        _bools(self, "allow_reconnect", "replay_unconfirmed", "retry_on_failed_connect")
        _bools(
            self,
            "lame_duck_move",
            "reconnect_after_fork",
            "ignore_auth_error_abort",
            "ignore_discovered_servers",
            "randomize_servers",
        )
        _int(self, "max_reconnect", at_least=-1)
        _seconds(self, "reconnect_wait", "reconnect_jitter", "reconnect_jitter_tls")
        _seconds(self, "reconnect_max_wait", optional=True)
        if self.reconnect_max_wait is not None and self.reconnect_max_wait < self.reconnect_wait:
            raise OptionError(
                "reconnect_max_wait",
                f"it must not be below reconnect_wait ({self.reconnect_wait} s)",
            )
        _int(self, "reconnect_buf_size", at_least=0)
        _callables(self, "custom_reconnect_delay_cb", "select_server_cb")
        if self.replay_unconfirmed and self.reconnect_buf_size == 0:
            raise OptionError("reconnect_buf_size", "replay_unconfirmed needs room: above 0")


@dataclass(frozen=True)
class TLSOptions:
    """How to speak TLS. Files are read anew at every attempt, so renewed ones are taken up."""

    #: PEM file of the authorities to trust, or a folder of them; None: those of the system.
    ca: Path | None = None
    cert: Path | None = None  #: PEM file of our certificate, for mutual TLS
    key: Path | None = None  #: PEM file of its key; None: it is in the file of ``cert``
    key_password: Secret = field(default=None, repr=False)  #: a str or a callable, if it has one
    #: False: take any certificate of any server. Anybody on the way can then read and change
    #: everything; a warning is logged at every attempt.
    verify: bool = True
    minimum_version: str = "1.2"  #: "1.2" or "1.3"
    ciphers: str | None = None  #: OpenSSL's list, for TLS 1.2

    def __post_init__(self) -> None:
        for name in ("ca", "cert", "key"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (str, os.PathLike)):
                raise OptionTypeError(name, f"a path is needed, not {type(value).__name__}")
        _bools(self, "verify")
        if self.key is not None and self.cert is None:
            raise OptionError("key", "it needs a cert beside it")
        if self.minimum_version not in ("1.2", "1.3"):
            raise OptionError(
                "minimum_version", f"it is '1.2' or '1.3', not {self.minimum_version!r}"
            )
        _secrets(self, "key_password")

    def __reduce__(self) -> Any:
        return _refuse_pickle(self, "key_password")


@dataclass(frozen=True)
class Callbacks:
    """Called in one greenlet, in order, once per event. They may call any method."""

    connected_cb: Callable[[Any], Any] | None = None  #: (conn) the first link is up
    disconnected_cb: Callable[[Any], Any] | None = None  #: (conn) once per loss
    reconnected_cb: Callable[[Any], Any] | None = None  #: (conn) restored, pending replayed
    closed_cb: Callable[[Any], Any] | None = None  #: (conn) the last callback of all
    #: (conn, exc) an error that no caller was there to receive
    error_cb: Callable[[Any, Exception], Any] | None = None
    discovered_servers_cb: Callable[[Any], Any] | None = None  #: (conn) INFO named new servers
    lame_duck_cb: Callable[[Any], Any] | None = None  #: (conn) the server is about to leave
    status_cb: Callable[[Any, Any, Any], Any] | None = None  #: (conn, old, new)

    def __post_init__(self) -> None:
        _callables(self, *(f.name for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class ConnectionOptions:
    """Everything that shapes a connection. Raises OptionError, which names the field."""

    #: One URL, several joined by commas, or a list; ``connect(servers)`` puts its own before them.
    servers: Servers = field(default=None, repr=False)  # URLs may hold passwords
    reconnect: ReconnectOptions = field(default_factory=ReconnectOptions)  #: when the link is lost
    callbacks: Callbacks = field(default_factory=Callbacks)  #: who is told of what

    #: One deadline per attempt, in seconds: DNS, TCP, INFO, CONNECT and PONG together.
    connect_timeout: float = 5.0
    ping_interval: float = 120.0  #: seconds between keepalive PINGs
    max_pings_out: int = 2  #: unanswered PINGs that are still borne
    drain_timeout: float = 30.0  #: seconds that a drain may take, at most
    write_timeout: float = 30.0  #: seconds without progress of a send: a lost link
    #: Longest that one publish waits for room, in seconds; None: until there is room.
    publish_timeout: float | None = None
    pending_msgs_limit: int = 512 * 1024  #: messages that may wait in one subscription
    pending_bytes_limit: int = 64 * 1024 * 1024  #: bytes that may wait in one subscription
    #: ``around(msg, handle)``, in the place of every subscription's callback: it calls ``handle()``
    #: once, and does what belongs before and after: tracing, closing old database connections.
    around: Callable[[Any, Callable[[], Any]], Any] | None = None
    observer: Observer | None = None  #: is told of every event; see ``gnats.metrics``

    user: Secret = field(default=None, repr=False)  #: a str, or a callable asked at every attempt
    password: Secret = field(default=None, repr=False)  #: the same
    token: Secret = field(default=None, repr=False)  #: the same
    #: A .creds file, its text, a pair of files for JWT and seed, or a callable that returns one.
    user_credentials: Creds | Callable[[], Creds] | None = field(default=None, repr=False)
    nkeys_seed: Path | Callable[[], Path] | None = field(default=None, repr=False)  #: a file
    nkeys_seed_str: Secret = field(default=None, repr=False)  #: the seed itself
    user_jwt_cb: Callable[[], Any] | None = None  #: ``cb() -> str or bytes``
    #: ``cb(nonce: str) -> bytes``: the signature, raw or in base64; None with a bearer JWT
    signature_cb: Callable[[str], Any] | None = None

    #: An ssl.SSLContext or a TLSOptions: links use TLS, and a server that offers none is refused.
    tls: Any = None
    tls_hostname: str | None = None  #: the name that certificates must be for; None: the URL's
    #: True: TLS before the server's INFO; the server must be configured for it too.
    tls_handshake_first: bool | None = None

    #: Headers of a WebSocket's upgrade request: name to value, or to several.
    ws_connection_headers: Mapping[str, str | list[str]] | None = field(default=None, repr=False)
    ws_compression: bool = True  #: compress a WebSocket's messages where the server takes them so

    #: ``cb(host, port, timeout) -> socket``: a connected gevent socket, through a proxy say.
    dialer: Callable[[str, int, float], Any] | None = None
    local_addr: tuple[str, int] | None = None  #: (address, port) to connect from; port 0: any
    #: Seconds of silence before the kernel probes a link by itself; None: it does not.
    tcp_keepalive: float | None = None
    #: Seconds that sent bytes may stay unacknowledged before the kernel ends the link (Linux).
    tcp_user_timeout: float | None = None

    name: str = ""  #: shown in the server's monitoring
    verbose: bool = False  #: the server says +OK to everything; for looking at the wire
    pedantic: bool = False  #: the server checks subjects more strictly
    no_echo: bool = False  #: do not deliver our own messages to our own subscriptions
    inbox_prefix: str = "_INBOX"  #: what the reply subjects of requests begin with

    def __post_init__(self) -> None:
        if isinstance(self.servers, Iterable) and not isinstance(self.servers, (str, tuple)):
            object.__setattr__(self, "servers", tuple(self.servers))
        parse_servers(self.servers)
        _instance(self, "reconnect", ReconnectOptions)
        _instance(self, "callbacks", Callbacks)
        _seconds(self, "connect_timeout", "ping_interval", "write_timeout", positive=True)
        _seconds(self, "drain_timeout")
        _seconds(self, "publish_timeout", optional=True)
        _int(self, "max_pings_out", at_least=1)
        _int(self, "pending_msgs_limit", "pending_bytes_limit", at_least=1)
        _callables(self, "around")
        _check_observer(self.observer)
        _bools(self, "verbose", "pedantic", "no_echo")
        _instance(self, "name", str)
        _check_credentials(self)
        _check_tls(self)
        _check_ws_headers(self.ws_connection_headers)
        if self.ws_connection_headers is not None:
            own = {  # a copy: what was checked is what is sent
                name: values if isinstance(values, str) else list(values)
                for name, values in self.ws_connection_headers.items()
            }
            object.__setattr__(self, "ws_connection_headers", own)
        _bools(self, "ws_compression")
        _seconds(self, "tcp_keepalive", "tcp_user_timeout", optional=True, positive=True)
        _callables(self, "dialer")
        _at_most(self, "tcp_keepalive", 32_767.0)  # the kernel's own limits
        _at_most(self, "tcp_user_timeout", 2_147_483.0)
        _check_local_addr(self.local_addr)
        _check_inbox_prefix(self.inbox_prefix)

    def __reduce__(self) -> Any:
        servers = parse_servers(self.servers) if self.servers is not None else []
        if any(url.has_credentials for url in servers):
            raise TypeError("ConnectionOptions holds a secret (servers) and is not pickled")
        return _refuse_pickle(self, *_SECRETS, *_FILES, "ws_connection_headers")

    def __copy__(self) -> ConnectionOptions:
        return self  # frozen

    def __deepcopy__(self, memo: object) -> ConnectionOptions:
        return self


_GROUPS: dict[str, type[ReconnectOptions] | type[Callbacks]] = {
    "reconnect": ReconnectOptions,
    "callbacks": Callbacks,
}


def from_fields(options: ConnectionOptions | None, fields: dict[str, Any]) -> ConnectionOptions:
    """*options* (or the defaults) with flat *fields* laid over them.

    Raises TypeError for a name that no group has, with the nearest one; OptionError.
    """
    if options is not None and not isinstance(options, ConnectionOptions):
        raise TypeError(f"options: ConnectionOptions is needed, not {type(options).__name__}")
    base = options or ConnectionOptions()
    own: dict[str, Any] = {}
    grouped: dict[str, dict[str, Any]] = {group: {} for group in _GROUPS}
    for name, value in fields.items():
        group = _HOME.get(name)
        if group is None:
            raise TypeError(f"unknown option {name!r}{_nearest(name)}")
        (grouped[group] if group else own)[name] = value
    for group, changes in grouped.items():
        if changes:
            start = own.get(group, getattr(base, group))
            kind = _GROUPS[group]
            if not isinstance(start, kind):
                raise OptionTypeError(
                    group, f"{kind.__name__} is needed, not {type(start).__name__}"
                )
            own[group] = dataclasses.replace(start, **changes)
    return dataclasses.replace(base, **own) if own else base


def _homes() -> dict[str, str]:
    """Field name to the group it lives in; "" for ConnectionOptions itself."""
    homes = {f.name: "" for f in dataclasses.fields(ConnectionOptions)}
    for group, kind in _GROUPS.items():
        homes.update({f.name: group for f in dataclasses.fields(kind)})
    return homes


_HOME = _homes()


# What other clients call ours; difflib would guess wrongly.
_OTHER_CLIENTS = {
    "reconnect_time_wait": "reconnect_wait",
    "reconnect_wait_ms": "reconnect_wait",
    "max_reconnect_attempts": "max_reconnect",
    "max_reconnects": "max_reconnect",
    "MaxReconnects": "max_reconnect",
    "max_outstanding_pings": "max_pings_out",
    "pending_size": "reconnect_buf_size",
    "reconnect_buffer_size": "reconnect_buf_size",
    "dont_randomize": "randomize_servers",
    "discovered_server_cb": "discovered_servers_cb",
    "disconnect_cb": "disconnected_cb",
    "lame_duck_mode_cb": "lame_duck_cb",
    "reconnect_to_server_handler": "select_server_cb",
    "flush_timeout": "write_timeout",
}


def _nearest(name: str) -> str:
    if name in _OTHER_CLIENTS:
        return f"; did you mean {_OTHER_CLIENTS[name]!r}?"
    near = difflib.get_close_matches(name, _HOME, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _instance(options: object, name: str, kind: type) -> None:
    value = getattr(options, name)
    if not isinstance(value, kind):
        raise OptionTypeError(name, f"{kind.__name__} is needed, not {type(value).__name__}")


def _bools(options: object, *names: str) -> None:
    for name in names:
        _instance(options, name, bool)


def check_callable(name: str, value: object, wanted: str = "a callable") -> None:
    """Raise OptionTypeError unless *value* is None or something to call that is not ``async``: what
    that returns nobody awaits here, so that it would never run."""
    if value is None:
        return
    if not callable(value):
        raise OptionTypeError(name, f"{wanted} is needed, not {type(value).__name__}")
    while isinstance(value, functools.partial):
        value = value.func
    if _is_async(value) or _is_async(getattr(type(value), "__call__", None)):  # noqa: B004
        raise OptionTypeError(
            name, "a plain function is needed, not an async one: nothing awaits it here"
        )


def _is_async(function: object) -> bool:
    code = getattr(function, "__code__", None)
    if isinstance(code, types.CodeType):  # inspect would take four times as long
        return bool(code.co_flags & _ASYNC)
    return inspect.iscoroutinefunction(function)


def _callables(options: object, *names: str) -> None:
    for name in names:
        check_callable(name, getattr(options, name))


def _int(options: object, *names: str, at_least: int) -> None:
    for name in names:
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise OptionTypeError(name, f"an int is needed, not {type(value).__name__}")
        if not at_least <= value <= LARGEST:
            raise OptionError(name, f"it must be {at_least} to {LARGEST}, not {value}")


def _seconds(options: object, *names: str, optional: bool = False, positive: bool = False) -> None:
    for name in names:
        value = getattr(options, name)
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise OptionTypeError(name, f"seconds are needed, not {type(value).__name__}")
        # Written so that NaN fails; what is too large fails because no timer of a loop holds it.
        if not (value > 0 if positive else value >= 0) or value > LONGEST:
            least = "more than 0" if positive else "0 or more"
            raise OptionError(name, f"it must be {least} seconds and finite, not {value!r:.40}")


_SECRETS = ("user", "password", "token", "nkeys_seed_str")
_FILES = ("user_credentials", "nkeys_seed")
#: Ways to say who we are, one of which is enough.
_WAYS = ("user", "token", "user_credentials", "nkeys_seed", "nkeys_seed_str", "user_jwt_cb")


def _secrets(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if not isinstance(value, str):
            check_callable(name, value, "a str or a callable")


def _check_credentials(options: ConnectionOptions) -> None:
    _secrets(options, *_SECRETS)
    _callables(options, "user_jwt_cb", "signature_cb")
    for name in _FILES:
        value = getattr(options, name)
        paths = value if isinstance(value, tuple) and name == "user_credentials" else (value,)
        if value is None or callable(value):
            check_callable(name, value)
            continue
        if len(paths) > 2 or not all(isinstance(path, (str, os.PathLike)) for path in paths):
            raise OptionTypeError(
                name, f"a path or a callable is needed, not {type(value).__name__}"
            )
    if options.password is not None and options.user is None:
        raise OptionError("password", "it needs a user beside it")
    if options.signature_cb is not None and options.user_jwt_cb is None:
        raise OptionError("signature_cb", "it needs a user_jwt_cb beside it")
    given = [name for name in _WAYS if getattr(options, name) is not None]
    if len(given) > 1:
        raise OptionError(given[1], f"give {given[0]} or {given[1]}, not both")


def _check_tls(options: ConnectionOptions) -> None:
    tls = options.tls
    # By what it can do, since only the transport knows ssl: gevent's contexts and the standard
    # library's, made before or after a monkey-patch, will all do.
    if tls is not None and not isinstance(tls, TLSOptions) and not hasattr(tls, "wrap_bio"):
        raise OptionTypeError(
            "tls", f"an ssl.SSLContext or a TLSOptions is needed, not {type(tls).__name__}"
        )
    if options.tls_hostname is not None:
        _instance(options, "tls_hostname", str)
    if options.tls_handshake_first is not None:
        _bools(options, "tls_handshake_first")


def _check_ws_headers(headers: object) -> None:
    name = "ws_connection_headers"
    if headers is None:
        return
    if not isinstance(headers, Mapping):
        raise OptionTypeError(name, f"a mapping is needed, not {type(headers).__name__}")
    for key, values in headers.items():
        each = [values] if isinstance(values, str) else values
        if not isinstance(each, (list, tuple)) or not all(isinstance(v, str) for v in each):
            raise OptionTypeError(name, f"the value of {key!r:.40} must be a str or a list of them")
        if not isinstance(key, str) or not _TOKEN.fullmatch(key):
            raise OptionError(name, f"{key!r:.40} is no name of an HTTP header")
        if key.lower() in _OWN_HEADERS or key.lower().startswith("sec-websocket-"):
            raise OptionError(name, f"{key!r:.40} is set by the handshake itself")
        if any(not _HEADER_VALUE.fullmatch(value) for value in each):
            raise OptionError(name, f"the value of {key!r:.40} holds what HTTP does not allow")


# Source: RFC 9110, 5.1 and 5.5.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = ("host", "connection", "upgrade", "content-length", "transfer-encoding")
_HEADER_VALUE = re.compile("(?![\t ])[\t\x20-\x7e\x80-\xff]*(?<![\t ])")


def _check_observer(observer: object) -> None:
    for method in ("counter", "gauge", "event"):
        if observer is not None and not callable(getattr(observer, method, None)):
            raise OptionTypeError("observer", f"a method {method!r} is needed (gnats.metrics)")


def _check_local_addr(address: object) -> None:
    if address is None:
        return
    if (
        not isinstance(address, tuple)
        or len(address) != 2
        or not isinstance(address[0], str)
        or isinstance(address[1], bool)
        or not isinstance(address[1], int)
    ):
        raise OptionTypeError("local_addr", f"(address, port) is needed, not {address!r:.40}")
    if not 0 <= address[1] <= 65535:
        raise OptionError("local_addr", f"the port must be 0 to 65535, not {address[1]}")


def _at_most(options: Any, name: str, most: float) -> None:
    value = getattr(options, name)
    if value is not None and value > most:
        raise OptionError(name, f"it must be at most {most:.0f} seconds, not {value}")


def _refuse_pickle(options: Any, *names: str) -> Any:
    """Secrets do not leave the process by way of a task queue."""
    for name in names:
        if getattr(options, name) is not None:
            raise TypeError(f"{type(options).__name__} holds a secret ({name}) and is not pickled")
    state = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    return _unpickle, (type(options), state)


def _unpickle(kind: type, state: dict[str, Any]) -> Any:
    return kind(**state)


def _check_inbox_prefix(prefix: object) -> None:
    try:
        encode_subject(prefix)  # type: ignore[arg-type]
    except BadSubjectError as exc:
        if not isinstance(prefix, str):
            raise OptionTypeError("inbox_prefix", exc.reason) from None
        raise OptionError("inbox_prefix", exc.reason) from None
