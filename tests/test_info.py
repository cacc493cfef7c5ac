"""INFO: a checked value, whatever a server says of itself."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_cases import BAD_INFO

from gnats.errors import ProtocolError
from gnats.info import DEFAULT_MAX_PAYLOAD, MAX_PAYLOAD_CEILING, ServerInfo, parse_info

pytestmark = pytest.mark.sansio

# As nats-server 2.10 sends it.
REAL = {
    "server_id": "NCXNUJKEWQ5QTNKDNF3ZQ5WZ6HQX",
    "server_name": "n1",
    "version": "2.10.18",
    "proto": 1,
    "git_commit": "57d23ac",
    "go": "go1.22.5",
    "host": "0.0.0.0",
    "port": 4222,
    "headers": True,
    "auth_required": True,
    "tls_required": False,
    "tls_available": True,
    "max_payload": 1048576,
    "jetstream": True,
    "client_id": 5,
    "client_ip": "127.0.0.1",
    "nonce": "w8Vaxyz",
    "cluster": "C1",
    "connect_urls": ["10.0.0.1:4222", "[::1]:4222"],
    "ldm": True,
    "xkey": "XBZ",
}


def parse(**fields: Any) -> ServerInfo:
    return parse_info(json.dumps(fields).encode())


def test_a_real_one() -> None:
    info = parse(**REAL)
    for name in ("server_id", "server_name", "version", "proto", "host", "port", "headers"):
        assert getattr(info, name) == REAL[name]
    for name in ("auth_required", "tls_required", "tls_available", "max_payload", "jetstream"):
        assert getattr(info, name) == REAL[name]
    for name in ("client_id", "client_ip", "nonce", "cluster", "ldm"):
        assert getattr(info, name) == REAL[name]
    assert info.connect_urls == ("10.0.0.1:4222", "[::1]:4222")


def test_it_reads_as_a_mapping_too() -> None:
    info = parse(**REAL)
    assert info["git_commit"] == "57d23ac"
    assert info.get("xkey") == "XBZ"
    assert info.get("none") is None
    assert info.get("none", 5) == 5
    assert dict(info.raw) == REAL
    with pytest.raises(KeyError):
        info["none"]


def test_it_is_a_value() -> None:
    info = parse(**REAL)
    assert info == parse(**REAL)
    assert hash(info) == hash(parse(**REAL))
    assert info != parse(**{**REAL, "port": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        info.raw["port"] = 1  # type: ignore[index]


def test_the_nonce_is_not_shown() -> None:
    assert "w8Vaxyz" not in repr(parse(**REAL))


def test_defaults_of_an_empty_one() -> None:
    info = parse()
    assert info == ServerInfo()
    assert info.max_payload == DEFAULT_MAX_PAYLOAD == 1024 * 1024
    assert (info.headers, info.tls_required, info.auth_required, info.ldm) == (False,) * 4
    assert (info.proto, info.port, info.client_id) == (0, 0, 0)
    assert info.connect_urls == ()


_TYPED = {
    field.name: field.type
    for field in dataclasses.fields(ServerInfo)
    if field.type in ("str", "int", "bool")
}
_VALUES: dict[str, Any] = {
    "str": "x",
    "int": 7,
    "bool": True,
    "float": 1.5,
    "list": [],
    "object": {},
}


def test_every_field_is_typed() -> None:
    names = {field.name for field in dataclasses.fields(ServerInfo)}
    assert names - set(_TYPED) == {"connect_urls", "raw"}


@pytest.mark.parametrize("name", list(_TYPED))
@pytest.mark.parametrize("kind", list(_VALUES))
def test_types(name: str, kind: str) -> None:
    value = _VALUES[kind]
    if _TYPED[name] == kind:
        assert getattr(parse(**{name: value}), name) == value
        return
    with pytest.raises(ProtocolError, match=name):
        parse(**{name: value})


@pytest.mark.parametrize("name", [*_TYPED, "connect_urls"])
def test_null_is_not_said(name: str) -> None:
    assert parse(**{name: None}) == ServerInfo()


@pytest.mark.parametrize("urls", ["a", 5, True, {}, {"a": 1}, [1], ["a", None], [["a"]], 1.5])
def test_connect_urls_of_a_wrong_type(urls: Any) -> None:
    with pytest.raises(ProtocolError, match="connect_urls"):
        parse(connect_urls=urls)


def test_connect_urls_are_passed_on_as_they_are() -> None:
    assert parse(connect_urls=[]).connect_urls == ()
    assert parse(connect_urls=["", "not an address"]).connect_urls == ("", "not an address")


@pytest.mark.parametrize("size", [0, -1, -(2**62)])
def test_max_payload_that_is_none(size: int) -> None:
    with pytest.raises(ProtocolError, match="max_payload"):
        parse(max_payload=size)


def test_max_payload_is_held_to_the_ceiling() -> None:
    assert parse(max_payload=1).max_payload == 1
    assert parse(max_payload=MAX_PAYLOAD_CEILING).max_payload == MAX_PAYLOAD_CEILING
    assert parse(max_payload=MAX_PAYLOAD_CEILING + 1).max_payload == MAX_PAYLOAD_CEILING
    assert parse(max_payload=2**63).max_payload == MAX_PAYLOAD_CEILING
    with pytest.raises(ProtocolError):
        parse_info(b'{"max_payload":1e400}')


@pytest.mark.parametrize("number", [2**64 - 1, 2**63 - 1, -(2**63)])
def test_numbers_of_64_bits_are_read(number: int) -> None:
    assert parse(client_id=number).client_id == number
    assert parse(new=number)["new"] == number


@pytest.mark.parametrize("body", list(BAD_INFO.values()), ids=list(BAD_INFO))
def test_bad(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_info(body)
    assert len(str(caught.value)) < 200


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*_TYPED, "connect_urls", "x"]) | st.text(max_size=3),
                inner,
                max_size=6,
            )
        ),
        max_leaves=10,
    )
)
def test_any_json_is_a_value_or_a_protocol_error(raw: Any) -> None:
    try:
        info = parse_info(json.dumps(raw).encode())
    except ProtocolError:
        return
    assert isinstance(info.connect_urls, tuple)
    assert 0 < info.max_payload <= MAX_PAYLOAD_CEILING
    for name, kind in _TYPED.items():
        assert type(getattr(info, name)).__name__ == kind
    repr(info)
