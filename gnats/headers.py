"""Message headers: a mapping that keeps case, order and every value. Values only: no I/O.

Source: ADR-4. Names are kept and compared exactly as written. ``headers["k"]`` is the first
value, ``get_all`` gives every one. The status of a reply without a body (503 and its kin)
reads as ``headers.status``, and as the entries "Status" and "Description" that users of
the other clients know; those two are read, never written back to the wire.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Union

from .errors import HeaderError, ProtocolError

VERSION = b"NATS/1.0"
STATUS = "Status"
DESCRIPTION = "Description"

# RFC 7230 style names: visible ASCII but the colon that ends them.
_NAME = re.compile(r"[\x21-\x39\x3b-\x7e]+\Z")
_VALUE_FORBIDDEN = re.compile(r"[\r\n\x00]")

HeaderValue = Union[str, Iterable[str]]
HeaderSource = Union["Headers", Mapping[str, HeaderValue], Iterable["tuple[str, str]"]]


class Headers(MutableMapping[str, str]):
    """Case-preserving, multi-value headers. Never switches; raises HeaderError on bad input."""

    __slots__ = ("_values", "description", "received", "status")

    def __init__(self, source: HeaderSource = ()) -> None:
        self._values: dict[str, list[str]] = {}
        #: The status of the status line, as an int, or None.
        self.status: int | None = None
        #: The words behind the status.
        self.description: str = ""
        #: Whether they came over the wire, unchecked.
        self.received = False
        if isinstance(source, Headers):
            self._values = {name: list(values) for name, values in source._values.items()}
            self.status, self.description = source.status, source.description
            self.received = source.received
            return
        if source.__class__ is tuple and not source:
            return  # as they are received: nothing to check
        for name, value in _pairs(source):
            for one in [value] if isinstance(value, str) else _several(name, value):
                self.add(name, one)

    def add(self, name: str, value: str) -> None:
        """Append one more *value* under *name*."""
        check_header(name, value)
        self._values.setdefault(name, []).append(value)

    def get_all(self, name: str) -> list[str]:
        """Every value under *name*, in order; an empty list when there is none."""
        return list(self._values.get(name, ()))

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every (name, value), as they go on the wire."""
        for name, values in self._values.items():
            for value in values:
                yield name, value

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name][0]
        except KeyError:
            if self.status is not None:
                if name == STATUS:
                    return str(self.status)
                if name == DESCRIPTION and self.description:
                    return self.description
            raise

    def __setitem__(self, name: str, value: HeaderValue) -> None:
        values = [value] if isinstance(value, str) else _several(name, value)
        for one in values:
            check_header(name, one)
        self._values[name] = values

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._values
        if self.status is not None:
            if STATUS not in self._values:
                yield STATUS
            if self.description and DESCRIPTION not in self._values:
                yield DESCRIPTION

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __eq__(self, other: object) -> bool:
        """Equal to other headers, or to a mapping of the same values (str, or list of str)."""
        if isinstance(other, Headers):
            return (self._values, self.status, self.description) == (
                other._values,
                other.status,
                other.description,
            )
        if isinstance(other, Mapping):
            try:
                return self == Headers(other)
            except (HeaderError, TypeError):
                return False
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = dict(self.pairs())
        if self.status is not None:
            return f"Headers({shown!r}, status={self.status}, description={self.description!r})"
        return f"Headers({list(self.pairs())!r})"


def check_header(name: str, value: str) -> None:
    """Refuse what would break the header block. Raises HeaderError."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise HeaderError(
            f"bad header name {_shown(name)}: visible ASCII characters are needed, "
            "without spaces or ':'"
        )
    if not isinstance(value, str):
        raise HeaderError(f"header {_shown(name)}: a str is needed, not {type(value).__name__}")
    if _VALUE_FORBIDDEN.search(value):
        raise HeaderError(f"header {_shown(name)}: the value holds a line break or a NUL")


def _shown(name: object) -> str:
    # A name that a peer has sent may be as long as a message.
    return f"{name!r:.100}"


def encode_headers(source: HeaderSource) -> bytes:
    """The wire form: version line, one line per value, an empty line. Raises HeaderError."""
    if source.__class__ is dict and (block := _encode_plain(source)) is not None:
        return block
    headers = source if isinstance(source, Headers) else Headers(source)
    if headers.received:
        # A peer's headers are read generously; what we send on is held to the rules.
        for name, value in headers.pairs():
            check_header(name, value)
    lines = [VERSION]
    try:
        lines += [f"{name}: {value}".encode() for name, value in headers.pairs()]
    except UnicodeEncodeError as exc:
        raise HeaderError(f"a header value cannot be encoded as UTF-8: {exc.reason}") from None
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _encode_plain(source: dict[str, str]) -> bytes | None:
    """The wire form of the usual, one str for each name: a third of the way through Headers. None
    for everything else, and for what is to be refused."""
    text = "NATS/1.0\r\n"
    for name, value in source.items():
        if name.__class__ is not str or value.__class__ is not str:
            return None
        if not _NAME.match(name) or _VALUE_FORBIDDEN.search(value):
            return None
        text += f"{name}: {value}\r\n"
    try:
        return (text + "\r\n").encode()
    except UnicodeEncodeError:
        return None


def decode_headers(block: bytes) -> Headers:
    """Read a header block. Raises ProtocolError when it is none.

    What a peer's client may send is read generously: a line without a colon and a name with
    odd characters are the sender's business; only a block that is no NATS/1.0 block fails.
    """
    if not block.startswith(VERSION):
        raise ProtocolError(f"a header block starts with {block[:20]!r}, not with NATS/1.0")
    first, *lines = block.decode("utf-8", "surrogateescape").split("\r\n")
    headers = Headers()
    headers.received = True
    rest = first[len(VERSION) :]
    if rest:
        if rest[0] not in " \t":
            raise ProtocolError(f"a header block starts with {block[:20]!r}, not with NATS/1.0")
        _read_status(headers, rest.strip(" \t"))
    values = headers._values
    for line in lines:
        if line:
            name, colon, value = line.partition(":")
            if colon:
                name, value = name.strip(" \t"), value.strip(" \t")
                if name in values:
                    values[name].append(value)
                else:
                    values[name] = [value]
    return headers


def _read_status(headers: Headers, text: str) -> None:
    code, _, description = text.partition(" ")
    if len(code) == 3 and code.isascii() and code.isdigit():
        headers.status = int(code)
        headers.description = description.strip(" \t")


def _pairs(source: object) -> list[tuple[str, HeaderValue]]:
    """The (name, value) pairs of whatever a caller gave as headers. Raises HeaderError."""
    if isinstance(source, Mapping):
        return list(source.items())
    if isinstance(source, Iterable) and not isinstance(source, (str, bytes)):
        pairs = list(source)
        if all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
            return [(name, value) for name, value in pairs]
    raise HeaderError(
        f"headers: a mapping, or a list of (name, value), is needed, not {type(source).__name__}"
    )


def _several(name: str, values: object) -> list[str]:
    if isinstance(values, Iterable) and not isinstance(values, (bytes, bytearray, memoryview)):
        several = list(values)
        if several:
            return several
        raise HeaderError(f"header {name!r}: the list of values is empty")
    raise HeaderError(
        f"header {name!r}: a str or a list of str is needed, not {type(values).__name__}"
    )
