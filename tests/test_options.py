"""Options: every field, its default, and a bad value of every kind, which names the field."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import ssl
import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gnats.errors import BadURLError, OptionError, OptionTypeError
from gnats.options import (
    _OTHER_CLIENTS,
    Callbacks,
    ConnectionOptions,
    ReconnectOptions,
    TLSOptions,
    from_fields,
)

pytestmark = pytest.mark.sansio

GROUPS = {"reconnect": ReconnectOptions, "callbacks": Callbacks}
MIB = 1024 * 1024


class Kind(NamedTuple):
    """What a field takes, what it refuses for its type, and for its value."""

    good: list[Any]
    wrong_type: list[Any]
    wrong_value: list[Any]


async def _coroutine(*_: Any) -> None: ...


async def _generator(*_: Any) -> Any:
    yield


class _Asynchronous:
    async def __call__(self, *_: Any) -> None: ...


#: What nothing here would await.
ASYNC = [_coroutine, _generator, functools.partial(_coroutine, 1), _Asynchronous()]

NAN, INF = math.nan, math.inf
BOOL = Kind([True, False], [None, 0, 1, "yes", [], 1.0], [])
SECONDS = Kind([0, 0.0, 1, 2.5, 1e9], [None, "1", True, [1], b"1"], [-1, -0.001, NAN, INF, -INF])
POSITIVE = Kind([0.001, 1, 2.5], [None, "1", True, [1], 1j], [0, 0.0, -1, NAN, INF, 10**400])
OPTIONAL = Kind([None, 0, 5.0], ["1", True, [1]], [-1, NAN, INF])
OPTIONAL_POSITIVE = Kind([None, 0.5, 5], ["1", True, [1]], [0, -1, NAN, INF])
CALLBACK = Kind([None, print, lambda *args: None], [0, 1, "print", [], True, *ASYNC], [])
SECRET = Kind([None, "x", "", lambda: "x"], [0, 5, True, b"x", ["x"], *ASYNC], [])


def number(at_least: int) -> Kind:
    wrong_type = [None, True, False, "5", 5.0, [5], 5j, NAN]
    return Kind([at_least, at_least + 1, 2**40], wrong_type, [at_least - 1, -(2**40)])


def group(kind: type) -> Kind:
    return Kind([kind()], [None, {}, 5, "x", [], kind], [])


OBSERVER = types.SimpleNamespace(counter=print, gauge=print, event=print)


class Field(NamedTuple):
    home: str  # "" for ConnectionOptions itself
    default: Any
    kind: Kind


FIELDS = {
    # -- reconnect
    "allow_reconnect": Field("reconnect", True, BOOL),
    "max_reconnect": Field("reconnect", 60, number(-1)),
    "reconnect_wait": Field("reconnect", 2.0, SECONDS),
    "reconnect_max_wait": Field("reconnect", None, OPTIONAL._replace(good=[None, 2.0, 60])),
    "reconnect_jitter": Field("reconnect", 0.1, SECONDS),
    "reconnect_jitter_tls": Field("reconnect", 1.0, SECONDS),
    "reconnect_buf_size": Field("reconnect", 8 * MIB, number(0)),
    "custom_reconnect_delay_cb": Field("reconnect", None, CALLBACK),
    "lame_duck_move": Field("reconnect", True, BOOL),
    "reconnect_after_fork": Field("reconnect", True, BOOL),
    "select_server_cb": Field("reconnect", None, CALLBACK),
    "replay_unconfirmed": Field("reconnect", False, BOOL),
    "retry_on_failed_connect": Field("reconnect", False, BOOL),
    "ignore_auth_error_abort": Field("reconnect", False, BOOL),
    "ignore_discovered_servers": Field("reconnect", False, BOOL),
    "randomize_servers": Field("reconnect", False, BOOL),
    # -- callbacks
    "connected_cb": Field("callbacks", None, CALLBACK),
    "disconnected_cb": Field("callbacks", None, CALLBACK),
    "reconnected_cb": Field("callbacks", None, CALLBACK),
    "closed_cb": Field("callbacks", None, CALLBACK),
    "error_cb": Field("callbacks", None, CALLBACK),
    "discovered_servers_cb": Field("callbacks", None, CALLBACK),
    "lame_duck_cb": Field("callbacks", None, CALLBACK),
    "status_cb": Field("callbacks", None, CALLBACK),
    # -- the connection's own
    "reconnect": Field("", ReconnectOptions(), group(ReconnectOptions)),
    "callbacks": Field("", Callbacks(), group(Callbacks)),
    "connect_timeout": Field("", 5.0, POSITIVE),
    "ping_interval": Field("", 120.0, POSITIVE),
    "max_pings_out": Field("", 2, number(1)),
    "drain_timeout": Field("", 30.0, SECONDS),
    "write_timeout": Field("", 30.0, POSITIVE),
    "publish_timeout": Field("", None, OPTIONAL),
    "pending_msgs_limit": Field("", 512 * 1024, number(1)),
    "pending_bytes_limit": Field("", 64 * MIB, number(1)),
    "around": Field("", None, CALLBACK),
    "observer": Field("", None, Kind([None, OBSERVER], [0, True, "x", print, object()], [])),
    "user": Field("", None, SECRET),
    "password": Field("", None, SECRET),
    "token": Field("", None, SECRET),
    "user_credentials": Field(
        "",
        None,
        Kind([None, "a.creds", Path("a"), ("a", "b"), lambda: "a"], [5, b"x", ["a"], ("a", 5)], []),
    ),
    "nkeys_seed": Field(
        "", None, Kind([None, "a.nk", Path("a"), lambda: "a"], [5, b"x", ["a"], ("a", "b")], [])
    ),
    "nkeys_seed_str": Field("", None, SECRET),
    "user_jwt_cb": Field("", None, CALLBACK),
    "signature_cb": Field("", None, CALLBACK),
    "tls": Field(
        "",
        None,
        Kind([None, TLSOptions(), ssl.create_default_context()], [True, "yes", {}, TLSOptions], []),
    ),
    "tls_hostname": Field("", None, Kind([None, "a.example"], [5, True, b"x"], [])),
    "tls_handshake_first": Field("", None, Kind([None, True, False], [0, 1, "yes", []], [])),
    "ws_connection_headers": Field(
        "",
        None,
        Kind(
            [None, {}, {"A": "b"}, {"A": ["b", "c"]}],
            ["A: b", 5, [("A", "b")], {"A": 5}, {"A": [5]}],
            [{"A b": "c"}, {"": "c"}, {"A": "b\r\nC: d"}, {"A\n": "b"}],
        ),
    ),
    "ws_compression": Field("", True, BOOL),
    "dialer": Field("", None, CALLBACK),
    "local_addr": Field(
        "",
        None,
        Kind(
            [None, ("127.0.0.1", 0), ("h", 65_535)],
            ["127.0.0.1", ("a",), ("a", "b"), ("a", True), (1, 2)],
            [],
        ),
    ),
    "tcp_keepalive": Field("", None, OPTIONAL_POSITIVE),
    "tcp_user_timeout": Field("", None, OPTIONAL_POSITIVE),
    "name": Field("", "", Kind(["", "x", "ü"], [None, 5, b"x", ["x"]], [])),
    "verbose": Field("", False, BOOL),
    "pedantic": Field("", False, BOOL),
    "no_echo": Field("", False, BOOL),
    "inbox_prefix": Field(
        "",
        "_INBOX",
        Kind(
            ["_INBOX", "my.inbox", "$X"],
            [None, 5, b"x", ["x"]],
            ["", "a b", "a.*", ">", "a.", "a..b", "a\r\nb", "x" * 5000],
        ),
    ),
}

# What a field needs beside it.
BESIDE: dict[str, dict[str, Any]] = {
    "password": {"user": "u"},
    "signature_cb": {"user_jwt_cb": lambda: "jwt"},
}


def build(name: str, value: Any, flat: bool = False) -> ConnectionOptions:
    fields = {name: value, **BESIDE.get(name, {})}
    home = FIELDS[name].home
    if flat:
        return from_fields(None, fields)
    if home:
        return ConnectionOptions(**{home: GROUPS[home](**fields)})
    return ConnectionOptions(**fields)


def read(options: ConnectionOptions, name: str) -> Any:
    home = FIELDS[name].home
    return getattr(getattr(options, home) if home else options, name)


def _cases(which: str) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={ascii(value)[:20]}")
        for name, field in FIELDS.items()
        for value in getattr(field.kind, which)
    ]


each_way = pytest.mark.parametrize("flat", [False, True], ids=["grouped", "flat"])


# -- every field -------------------------------------------------------------------------


def test_the_table_has_every_field() -> None:
    found = {field.name: "" for field in dataclasses.fields(ConnectionOptions)}
    for home, kind in GROUPS.items():
        for field in dataclasses.fields(kind):
            assert field.name not in found, "names never collide"
            found[field.name] = home
    del found["servers"]  # has tests of its own
    assert found == {name: field.home for name, field in FIELDS.items()}


@pytest.mark.parametrize("name", list(FIELDS))
def test_defaults(name: str) -> None:
    value = read(ConnectionOptions(), name)
    assert value == FIELDS[name].default
    assert type(value) is type(FIELDS[name].default)


@each_way
@pytest.mark.parametrize(("name", "value"), _cases("good"))
def test_good(name: str, value: Any, flat: bool) -> None:
    options = build(name, value, flat)
    assert read(options, name) == value


@each_way
@pytest.mark.parametrize(("name", "value"), _cases("wrong_type"))
def test_wrong_type(name: str, value: Any, flat: bool) -> None:
    with pytest.raises(OptionTypeError) as caught:
        build(name, value, flat)
    assert caught.value.option == name
    assert repr(name) in str(caught.value)


@each_way
@pytest.mark.parametrize(("name", "value"), _cases("wrong_value"))
def test_wrong_value(name: str, value: Any, flat: bool) -> None:
    with pytest.raises(OptionError) as caught:
        build(name, value, flat)
    assert not isinstance(caught.value, OptionTypeError)
    assert caught.value.option == name
    assert repr(name) in str(caught.value)


def test_errors_are_what_python_users_catch() -> None:
    with pytest.raises(TypeError):
        ConnectionOptions(name=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        ConnectionOptions(connect_timeout=-1)


# -- fields that need each other ---------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"reconnect_max_wait": 1.0, "reconnect_wait": 2.0}, "reconnect_max_wait"),
        ({"reconnect_max_wait": 1.9}, "reconnect_max_wait"),
        ({"replay_unconfirmed": True, "reconnect_buf_size": 0}, "reconnect_buf_size"),
        ({"password": "p"}, "password"),
        ({"password": lambda: "p"}, "password"),
        ({"token": "t", "user": "u"}, "token"),
        ({"token": "t", "user": "u", "password": "p"}, "token"),
    ],
)
def test_together(fields: dict[str, Any], option: str) -> None:
    with pytest.raises(OptionError) as caught:
        from_fields(None, fields)
    assert caught.value.option == option


def test_together_across_what_was_set_before() -> None:
    base = from_fields(None, {"reconnect_wait": 10.0, "reconnect_max_wait": 20.0})
    assert from_fields(base, {"reconnect_max_wait": 10.0}).reconnect.reconnect_max_wait == 10.0
    with pytest.raises(OptionError):
        from_fields(base, {"reconnect_max_wait": 5.0})
    with pytest.raises(OptionError):
        from_fields(base, {"reconnect_wait": 30.0})


# -- what the kernel takes ---------------------------------------------------------------

# tests/test_links.py makes connections with what is just inside.
LIMITS = [
    ("tcp_keepalive", 32_767, 32_767.5, "at most 32767 seconds"),
    ("tcp_keepalive", 32_767.0, 32_768, "at most 32767 seconds"),
    ("tcp_user_timeout", 2_147_483, 2_147_483.5, "at most 2147483 seconds"),
    ("tcp_user_timeout", 2_147_483.0, 2_147_484, "at most 2147483 seconds"),
    ("local_addr", ("127.0.0.1", 0), ("127.0.0.1", -1), "0 to 65535"),
    ("local_addr", ("127.0.0.1", 65_535), ("127.0.0.1", 65_536), "0 to 65535"),
]


@pytest.mark.parametrize(("name", "inside", "outside", "cure"), LIMITS, ids=str)
def test_the_limits_of_the_kernel(name: str, inside: Any, outside: Any, cure: str) -> None:
    """Told when the options are built, by the field's name, and not at every attempt."""
    assert getattr(ConnectionOptions(**{name: inside}), name) == inside
    with pytest.raises(OptionError) as caught:
        ConnectionOptions(**{name: outside})
    assert not isinstance(caught.value, OptionTypeError)
    assert caught.value.option == name
    assert name in str(caught.value)
    assert cure in str(caught.value)
    wrong = outside[1] if name == "local_addr" else outside
    assert str(wrong) in str(caught.value)


# -- servers -----------------------------------------------------------------------------


def test_servers_are_kept_as_they_were_given_or_as_a_tuple() -> None:
    assert ConnectionOptions().servers is None
    assert ConnectionOptions(servers="a,b").servers == "a,b"
    names = ["a", "b"]
    options = ConnectionOptions(servers=names)
    names.append("c")
    assert options.servers == ("a", "b")
    assert ConnectionOptions(servers=(name for name in ["a"])).servers == ("a",)


@pytest.mark.parametrize(
    "servers", ["", "a,", [], ["a", ""], [None], ["http://a"], "nats://a:0", 5, 1.5, True, b"a"]
)
def test_bad_servers(servers: Any) -> None:
    for make in (
        lambda: ConnectionOptions(servers=servers),
        lambda: from_fields(None, {"servers": servers}),
    ):
        with pytest.raises(BadURLError):
            make()


# -- flat and grouped --------------------------------------------------------------------


def test_flat_is_grouped() -> None:
    def log(*args: Any) -> None:
        pass

    grouped = ConnectionOptions(
        servers="a",
        name="n",
        reconnect=ReconnectOptions(max_reconnect=-1, reconnect_wait=1.0),
        callbacks=Callbacks(disconnected_cb=log, error_cb=log),
    )
    flat = from_fields(
        None,
        {
            "servers": "a",
            "name": "n",
            "max_reconnect": -1,
            "reconnect_wait": 1.0,
            "disconnected_cb": log,
            "error_cb": log,
        },
    )
    assert flat == grouped


@pytest.mark.parametrize("name", list(FIELDS))
def test_one_flat_field_changes_nothing_else(name: str) -> None:
    value = next(
        (one for one in FIELDS[name].kind.good if one != FIELDS[name].default),
        FIELDS[name].default,
    )
    options = from_fields(None, {name: value, **BESIDE.get(name, {})})
    for other, field in FIELDS.items():
        if other not in (name, FIELDS[name].home, *BESIDE.get(name, {})):
            assert read(options, other) == field.default


def test_fields_are_laid_over_options() -> None:
    base = ConnectionOptions(name="n", reconnect=ReconnectOptions(max_reconnect=7))
    changed = from_fields(base, {"reconnect_wait": 9.0, "pedantic": True})
    assert (changed.name, changed.pedantic) == ("n", True)
    assert (changed.reconnect.max_reconnect, changed.reconnect.reconnect_wait) == (7, 9.0)
    assert (base.pedantic, base.reconnect.reconnect_wait) == (False, 2.0)


def test_a_group_and_fields_of_it_together() -> None:
    given = ReconnectOptions(max_reconnect=7)
    options = from_fields(None, {"reconnect": given, "reconnect_wait": 9.0})
    assert (options.reconnect.max_reconnect, options.reconnect.reconnect_wait) == (7, 9.0)
    assert given.reconnect_wait == 2.0


@pytest.mark.parametrize("name", list(GROUPS))
@pytest.mark.parametrize("value", [None, 5, {}])
def test_a_group_of_a_wrong_type_with_a_field_of_it(name: str, value: Any) -> None:
    field = {"reconnect": {"max_reconnect": 1}, "callbacks": {"error_cb": print}}[name]
    with pytest.raises(OptionTypeError) as caught:
        from_fields(None, {name: value, **field})
    assert caught.value.option == name


def test_nothing_given_is_the_defaults() -> None:
    assert from_fields(None, {}) == ConnectionOptions()
    base = ConnectionOptions(name="n")
    assert from_fields(base, {}) == base


@pytest.mark.parametrize("options", [{}, "x", 5, ReconnectOptions(), ConnectionOptions])
def test_options_of_a_wrong_type(options: Any) -> None:
    with pytest.raises(TypeError, match="ConnectionOptions"):
        from_fields(options, {})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("max_reconect", "max_reconnect"),
        # as other clients call them (DESIGN, options and defaults)
        ("reconnect_time_wait", "reconnect_wait"),
        ("reconnect_wait_ms", "reconnect_wait"),
        ("max_reconnect_attempts", "max_reconnect"),
        ("MaxReconnects", "max_reconnect"),
        ("max_reconnects", "max_reconnect"),
        ("error_callback", "error_cb"),
        ("ping_intervall", "ping_interval"),
        ("pasword", "password"),
        ("Verbose", "verbose"),
        ("server", "servers"),
    ],
)
def test_an_unknown_field_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(TypeError) as caught:
        from_fields(None, {name: 1})
    assert repr(name) in str(caught.value)
    assert str(caught.value).rstrip("?").endswith(f" {nearest!r}")


def test_an_unknown_field_with_nothing_near() -> None:
    with pytest.raises(TypeError) as caught:
        from_fields(None, {"zzzzzz": 1})
    assert str(caught.value).count("'") == 2
    assert "'zzzzzz'" in str(caught.value)


# -- values ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["servers", *FIELDS])
def test_frozen(name: str) -> None:
    options = ConnectionOptions()
    home = FIELDS[name].home if name in FIELDS else ""
    target = getattr(options, home) if home else options
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(target, name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(target, name)


def test_defaults_are_not_shared_by_accident() -> None:
    assert ConnectionOptions() == ConnectionOptions()
    assert copy.copy(ConnectionOptions(name="n")) == ConnectionOptions(name="n")


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u5er", "password": "hunter2"},
        {"token": "hunter2"},
        {"servers": "nats://u5er:hunter2@h"},
        {"servers": ["nats://hunter2@h", "b"]},
    ],
)
def test_no_secret_in_repr(fields: dict[str, Any]) -> None:
    options = from_fields(None, fields)
    for shown in (repr(options), str(options), f"{options}"):
        assert "hunter2" not in shown
        assert "u5er" not in shown


@pytest.mark.parametrize(
    "fields",
    [
        {"password": "hunter2"},
        {"token": "hunter2", "user": "hunter2"},
        {"user": ["hunter2"]},
        {"password": b"hunter2", "user": "x"},
        {"servers": "nats://u:hunter2@h:0"},
        {"servers": ["nats://u:hunter2@h/x"]},
    ],
)
def test_no_secret_in_errors(fields: dict[str, Any]) -> None:
    with pytest.raises((OptionError, BadURLError)) as caught:
        from_fields(None, fields)
    assert "hunter2" not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize(("theirs", "ours"), list(_OTHER_CLIENTS.items()))
def test_names_of_other_clients_lead_to_names_of_ours(theirs: str, ours: str) -> None:
    assert ours in FIELDS
    with pytest.raises(TypeError, match=f"{theirs}.*{ours}"):
        from_fields(None, {theirs: 1})
