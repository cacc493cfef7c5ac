"""What a server says of itself: the INFO line as a checked value. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .errors import ProtocolError

# The server's own upper bound for max_payload (64 MiB); an announced one is held to it.
MAX_PAYLOAD_CEILING = 64 * 1024 * 1024
DEFAULT_MAX_PAYLOAD = 1024 * 1024


@dataclass(frozen=True)
class ServerInfo:
    """The fields of INFO that gnats uses; ``raw`` has them all. Also readable as a mapping:
    ``info["version"]``, ``info.get("cluster")``. Source: client protocol page, INFO.
    """

    server_id: str = ""
    server_name: str = ""
    version: str = ""
    proto: int = 0
    host: str = ""
    port: int = 0
    headers: bool = False
    auth_required: bool = False
    tls_required: bool = False
    tls_available: bool = False
    max_payload: int = DEFAULT_MAX_PAYLOAD
    client_id: int = 0
    client_ip: str = ""
    cluster: str = ""
    connect_urls: tuple[str, ...] = ()
    ldm: bool = False
    nonce: str = field(default="", repr=False)
    jetstream: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, name: str) -> Any:
        return self.raw[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.raw.get(name, default)


_KINDS: dict[str, type] = {
    name: {"str": str, "int": int, "bool": bool}[kind]
    for name, kind in ServerInfo.__annotations__.items()
    if kind in ("str", "int", "bool")
}


def parse_info(line: bytes) -> ServerInfo:
    """Read the JSON behind INFO. Raises ProtocolError: no JSON, or a field of a wrong type."""
    try:
        # Decoded here: json would guess UTF-16 and UTF-32, and let half a surrogate pair through.
        raw = json.loads(line.decode(), parse_int=_small_int)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"INFO is not JSON: {type(exc).__name__}") from None
    if not isinstance(raw, dict):
        raise ProtocolError(f"INFO is a JSON {type(raw).__name__}, not an object")
    known: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        value = raw.get(name)
        if value is not None:
            known[name] = _checked(name, value, kind)
    if known.get("max_payload", 1) <= 0:
        raise ProtocolError("INFO announces a max_payload that is not positive")
    known["max_payload"] = min(known.get("max_payload", DEFAULT_MAX_PAYLOAD), MAX_PAYLOAD_CEILING)
    return ServerInfo(connect_urls=_urls(raw), raw=MappingProxyType(raw), **known)


def _checked(name: str, value: object, kind: type) -> object:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ProtocolError(
            f"INFO field {name!r} is a {type(value).__name__}, not a {kind.__name__}"
        )
    return value


def _urls(raw: dict[str, Any]) -> tuple[str, ...]:
    urls = raw.get("connect_urls")
    if urls is None:
        return ()
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise ProtocolError("INFO field 'connect_urls' is not a list of str")
    return tuple(urls)


def _small_int(digits: str) -> int:
    # A megabyte of digits takes Python seconds to convert; no field of INFO needs more than 20.
    if len(digits) > 20:
        raise ValueError("a number is too long")
    return int(digits)
