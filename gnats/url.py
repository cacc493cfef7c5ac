"""One server's address, read from what a person writes. Values only: nothing is resolved.

Accepted: ``nats://host:port``, ``tls://``, ``ws://host:port/path``, ``wss://``, ``host:port``,
``host``, IPv6 in brackets, and credentials as ``user:password@`` or ``token@``, percent-encoded
where they must be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Union
from urllib.parse import unquote, urlsplit

from .errors import BadURLError

DEFAULT_PORT = 4222
DEFAULT_URL = f"nats://127.0.0.1:{DEFAULT_PORT}"

Servers = Union[str, Iterable[str], None]


@dataclass(frozen=True)
class ServerURL:
    """Where a server is and, if the URL said so, who we are there. ``repr`` hides secrets."""

    host: str
    port: int = DEFAULT_PORT
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    scheme: str = "nats"  #: "nats", "tls", "ws" or "wss"
    path: str = ""  #: of a WebSocket
    #: The name its certificate must be for, where that is not ``host``: a server discovered by its
    #: IP address has the name of the one that announced it.
    tls_name: str | None = None

    @property
    def is_secure(self) -> bool:
        """Whether the URL itself asks for TLS."""
        return self.scheme in ("tls", "wss")

    @property
    def is_websocket(self) -> bool:
        return self.scheme in ("ws", "wss")

    @property
    def address(self) -> str:
        """``host:port``, IPv6 in brackets: the identity of a server in the pool."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.path}"

    @property
    def has_credentials(self) -> bool:
        return self.user is not None or self.token is not None

    def __reduce__(self) -> Any:
        if self.has_credentials:
            raise TypeError("a ServerURL that holds credentials is not pickled")
        facts = (self.host, self.port, None, None, None, self.scheme, self.path, self.tls_name)
        return ServerURL, facts

    def __copy__(self) -> ServerURL:
        return self  # frozen

    def __deepcopy__(self, memo: object) -> ServerURL:
        return self


#: Scheme to default port.
_PORTS = {"nats": DEFAULT_PORT, "tls": DEFAULT_PORT, "ws": 80, "wss": 443}

# What may stand behind the "@"; urllib's int() takes signs, underscores and other alphabets.
_PORT = re.compile(r"(?:\[[^]]*\]|[^:]*)(?::[0-9]{1,5})?")


def parse_url(text: str) -> ServerURL:
    """Read one URL. Raises BadURLError, which never repeats what may be a password."""
    if not isinstance(text, str):
        raise BadURLError(f"a str is needed, not {type(text).__name__}")
    text = text.strip()
    if not text:
        raise BadURLError("it is empty")
    if any(c.isspace() or ord(c) < 0x21 or ord(c) == 0x7F for c in text):
        # urlsplit would drop some of them without a word.
        raise BadURLError("it holds whitespace or control characters")
    if "://" not in text:
        text = "nats://" + text
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise BadURLError(f"{_without_secrets(text)}: {_reason(exc)}") from None
    shown = _without_secrets(text)
    if parts.scheme not in _PORTS:
        raise BadURLError(
            f"{shown}: scheme {parts.scheme!r} is not known; use nats://, tls://, ws:// or wss://"
        )
    if "," in parts.netloc:
        raise BadURLError(f"{shown}: several servers are a list, or one str with commas")
    if not host or "[" in host or "]" in host:
        raise BadURLError(f"{shown}: it names no host")
    if port == 0 or not _PORT.fullmatch(parts.netloc.rpartition("@")[2]):
        raise BadURLError(f"{shown}: the port must be 1 to 65535")
    path = "" if parts.path == "/" else parts.path
    if not path.isascii():
        raise BadURLError(f"{shown}: the path of a WebSocket must be ASCII")
    if parts.query or parts.fragment or (path and not parts.scheme.startswith("ws")):
        raise BadURLError(f"{shown}: nothing may follow the port")
    user, password, token = _credentials(parts.username, parts.password)
    port = _PORTS[parts.scheme] if port is None else port
    return ServerURL(host, port, user, password, token, parts.scheme, path)


def parse_servers(servers: Servers) -> list[ServerURL]:
    """Read one URL, several joined by commas, or a list. None gives the default server."""
    if servers is None:
        servers = DEFAULT_URL
    if not isinstance(servers, (str, Iterable)):
        raise BadURLError(f"a str or a list of them is needed, not {type(servers).__name__}")
    texts = servers.split(",") if isinstance(servers, str) else list(servers)
    urls = [parse_url(text) for text in texts]
    if not urls:
        raise BadURLError("the list of servers is empty")
    check_one_kind(urls)
    return list({url.address: url for url in urls}.values())


def check_one_kind(urls: Iterable[ServerURL]) -> None:
    """WebSocket servers and others cannot stand in one pool: what one of them announces would
    not fit the others. Raises BadURLError, which names two that differ."""
    first: ServerURL | None = None
    for url in urls:
        first = first or url
        if url.is_websocket != first.is_websocket:
            raise BadURLError(
                f"{first} and {url}: WebSocket servers and others do not mix in one connection"
            )


def _credentials(
    user: str | None, password: str | None
) -> tuple[str | None, str | None, str | None]:
    """(user, password, token): a name without a password is a token, as in every client."""
    if user is None:
        return None, None, None
    if password is None:
        return None, None, unquote(user)
    return unquote(user), unquote(password), None


def _without_secrets(text: str) -> str:
    """*text* without all that might be a password, however badly the URL is written."""
    scheme, _, rest = text.partition("://")
    host, colon, port = rest.rpartition("@")[2].rpartition(":")
    if colon and not port.isdigit() and not port.endswith("]"):
        port = "…"
    return repr(f"{scheme.partition(':')[0]}://{host}{colon}{port}")


def _reason(exc: ValueError) -> str:
    # urllib quotes the whole text in some messages, and with it the password.
    message = str(exc).lower()
    return "the port must be 1 to 65535" if "port" in message else "it cannot be read"
