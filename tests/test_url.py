"""Server URLs: what is read, what is refused, and that no error repeats a password."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnats.errors import BadURLError
from gnats.url import DEFAULT_PORT, ServerURL, parse_servers, parse_url

pytestmark = pytest.mark.sansio

GOOD = [
    ("nats://h:1", ServerURL("h", 1)),
    ("nats://h", ServerURL("h", 4222)),
    ("h:1", ServerURL("h", 1)),
    ("h", ServerURL("h", 4222)),
    ("nats://h:4222/", ServerURL("h", 4222)),
    ("NATS://Host.Example:1", ServerURL("host.example", 1)),
    ("  nats://h:1\n", ServerURL("h", 1)),
    ("127.0.0.1", ServerURL("127.0.0.1", 4222)),
    ("127.0.0.1:65535", ServerURL("127.0.0.1", 65535)),
    ("[::1]", ServerURL("::1", 4222)),
    ("nats://[::1]:4333", ServerURL("::1", 4333)),
    ("nats://[2001:db8::1]:1", ServerURL("2001:db8::1", 1)),
    ("nats://u:p@h:1", ServerURL("h", 1, "u", "p")),
    ("u:p@h", ServerURL("h", 4222, "u", "p")),
    ("u:p@[::1]:1", ServerURL("::1", 1, "u", "p")),
    ("nats://t0ken@h", ServerURL("h", 4222, token="t0ken")),
    ("t0ken@h:1", ServerURL("h", 1, token="t0ken")),
    ("nats://u:@h", ServerURL("h", 4222, "u", "")),
    ("nats://u%40d:p%3A%2F%40%2C%25@h", ServerURL("h", 4222, "u@d", "p:/@,%")),
    ("nats://t%2Fo%40k@h", ServerURL("h", 4222, token="t/o@k")),
    ("nats://u:p@ss@h", ServerURL("h", 4222, "u", "p@ss")),
    ("nats://u:a:b@h", ServerURL("h", 4222, "u", "a:b")),
    ("nats://u:%C3%BC@h", ServerURL("h", 4222, "u", "ü")),
    ("my_host.internal", ServerURL("my_host.internal")),
]

BAD = [
    "",
    "   ",
    "nats://",
    "nats://:4222",
    ":4222",
    "nats:///x",
    "nats://u:p@",
    "nats://u:p@:4222",
    "nats://h:0",
    "nats://h:-1",
    "nats://h:65536",
    "nats://h:99999999999999999999",
    "nats://h:",
    "h:",
    "nats://h:port",
    "nats://h:4222x",
    "nats://h:+4222",
    "nats://h:4_2",
    "nats://h:\u0664\u0662",
    "nats://h:42.5",
    "h:1:2",
    "::1",
    "[::1",
    "::1]",
    "nats://[::1",
    "nats://[]:1",
    "nats://h/path",
    "nats://h:1/path",
    "nats://h?x=1",
    "nats://h#x",
    "http://h",
    "tcp://h:1",
    "redis://h",
    "://h",
    "a b",
    "nats://a b",
    "nats://a\tb",
    "nats://a\nb",
    "nats://a\rb:1",
    "nats://a\x00b",
    "nats://a\x7fb",
    "nats://h:1 2",
    "nats://h:\n1",
    "na\nts://h",
    "a\u2003b",
]


@pytest.mark.parametrize(("text", "url"), GOOD)
def test_good(text: str, url: ServerURL) -> None:
    assert parse_url(text) == url


@pytest.mark.parametrize("text", BAD, ids=ascii)
def test_bad(text: str) -> None:
    with pytest.raises(BadURLError) as caught:
        parse_url(text)
    assert caught.value.reason
    assert caught.value.__cause__ is None  # urllib's own words may quote the whole URL


@pytest.mark.parametrize("value", [None, 5, b"nats://h", ["nats://h"], object()])
def test_wrong_type(value: object) -> None:
    with pytest.raises(BadURLError, match=f"not {type(value).__name__}"):
        parse_url(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "nats://user:hunter2@h:0",
        "nats://user:hunter2@h:99999",
        "nats://user:hunter2@h:abc",
        "nats://user:hunter2@",
        "nats://user:hunter2@h/path",
        "nats://user:hunter2@[::1",
        "nats://user:hun/ter2@h",
        "nats://user:hun?ter2@h",
        "nats://user:hun#ter2@h",
        "nats://user:hunter2@h@h:0",
        "http://user:hunter2@h",
        "user:hunter2@h:abc",
        "nats://user:hunter2@h o",
        "nats://user:hunt er2@h",
        "nats://hunter2@h:0",
        "nats://user:[hunter2@h",
    ],
)
def test_errors_never_repeat_a_secret(text: str) -> None:
    with pytest.raises(BadURLError) as caught:
        parse_url(text)
    error: BaseException | None = caught.value
    while error is not None:
        shown = f"{error} {error!r} {error.args}"
        assert "hunter2" not in shown
        assert "ter2" not in shown
        error = None if error.__suppress_context__ else error.__context__


@pytest.mark.parametrize("text", ["nats://user:hunter2@h:1", "nats://hunter2@h:1"])
def test_repr_and_str_hide_secrets(text: str) -> None:
    url = parse_url(text)
    assert str(url) == "nats://h:1"
    assert url.address == "h:1"
    for shown in (repr(url), str(url), url.address, f"{url}", repr([url])):
        assert "hunter2" not in shown
        assert "user" not in shown.replace("user=", "")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (ServerURL("h"), "h:4222"),
        (ServerURL("h", 1), "h:1"),
        (ServerURL("::1", 1), "[::1]:1"),
    ],
)
def test_address(url: ServerURL, address: str) -> None:
    assert url.address == address
    assert str(url) == f"nats://{address}"
    assert parse_url(url.address) == url == parse_url(str(url))


def test_has_credentials() -> None:
    assert not parse_url("h").has_credentials
    assert parse_url("u:p@h").has_credentials
    assert parse_url("t@h").has_credentials


def test_it_is_a_value() -> None:
    url = ServerURL("h")
    assert url.port == DEFAULT_PORT
    assert hash(url) == hash(parse_url("h"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        url.port = 1  # type: ignore[misc]


# -- several -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("servers", "addresses"),
    [
        (None, ["127.0.0.1:4222"]),
        ("a", ["a:4222"]),
        ("a,b:1", ["a:4222", "b:1"]),
        (" nats://a , nats://b ", ["a:4222", "b:4222"]),
        (["a", "nats://b:1"], ["a:4222", "b:1"]),
        (("a", "b"), ["a:4222", "b:4222"]),
        (iter(["b", "a"]), ["b:4222", "a:4222"]),
        ("b,a,b:4222,A", ["b:4222", "a:4222"]),
    ],
)
def test_servers(servers: object, addresses: list[str]) -> None:
    assert [url.address for url in parse_servers(servers)] == addresses  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "servers", ["", ",", "a,", ",a", "a,,b", [], (), ["a", ""], ["a", None], [5], 5, b"a", 1.5]
)
def test_bad_servers(servers: object) -> None:
    with pytest.raises(BadURLError):
        parse_servers(servers)  # type: ignore[arg-type]


def test_a_list_is_not_split_at_commas() -> None:
    with pytest.raises(BadURLError):
        parse_servers(["a,b:1"])


# -- any text ----------------------------------------------------------------------------


@given(st.text(max_size=30))
def test_any_text_is_a_url_or_bad(text: str) -> None:
    try:
        url = parse_url(text)
    except BadURLError:
        return
    assert url.host
    assert 1 <= url.port <= 65535
    assert not any(c.isspace() for c in url.host)


@given(st.text("ab:@/[].%0129?#,", max_size=20))
def test_any_punctuation_is_a_url_or_bad(text: str) -> None:
    try:
        url = parse_url("nats://" + text)
    except BadURLError:
        return
    assert parse_url(str(url)) == dataclasses.replace(url, user=None, password=None, token=None)


@given(
    user=st.text(min_size=1, max_size=10),
    password=st.text(max_size=10),
)
def test_credentials_round_trip_when_percent_encoded(user: str, password: str) -> None:
    from urllib.parse import quote

    try:
        quoted = f"nats://{quote(user, safe='')}:{quote(password, safe='')}@h"
    except UnicodeEncodeError:
        return
    assert parse_url(quoted) == ServerURL("h", user=user, password=password)
