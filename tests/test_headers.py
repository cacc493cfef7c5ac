"""Headers: case kept, order kept, every value kept; hostile blocks; what must never go out."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnats.errors import HeaderError, ProtocolError
from gnats.headers import Headers, decode_headers, encode_headers

pytestmark = pytest.mark.sansio

# -- a mapping ---------------------------------------------------------------------------


def test_case_is_kept_and_tells_names_apart() -> None:
    headers = Headers({"X-Id": "1", "x-id": "2", "X-ID": "3"})
    assert list(headers) == ["X-Id", "x-id", "X-ID"]
    assert (headers["X-Id"], headers["x-id"], headers["X-ID"]) == ("1", "2", "3")
    assert "X-iD" not in headers


def test_several_values() -> None:
    headers = Headers()
    headers.add("k", "1")
    headers.add("other", "x")
    headers.add("k", "2")
    assert headers["k"] == "1"
    assert headers.get_all("k") == ["1", "2"]
    assert headers.get_all("none") == []
    assert list(headers.pairs()) == [("k", "1"), ("k", "2"), ("other", "x")]
    assert len(headers) == 2


def test_a_mapping_as_others() -> None:
    headers = Headers({"a": "1"})
    headers["b"] = "2"
    headers["a"] = "3"
    assert dict(headers) == {"a": "3", "b": "2"}
    assert headers.get("c") is None
    assert headers.get("c", "x") == "x"
    assert headers.setdefault("c", "4") == "4"
    assert headers.pop("c") == "4"
    assert ("a" in headers, "c" in headers, 5 in headers) == (True, False, False)
    del headers["a"]
    headers.update({"d": "5"})
    assert list(headers.items()) == [("b", "2"), ("d", "5")]
    assert bool(headers)
    headers.clear()
    assert not headers


def test_missing_names_raise_key_error() -> None:
    headers = Headers()
    for use in (lambda: headers["x"], lambda: headers.pop("x"), lambda: headers.__delitem__("x")):
        with pytest.raises(KeyError):
            use()


def test_setting_replaces_every_value() -> None:
    headers = Headers([("k", "1"), ("k", "2")])
    headers["k"] = ["3", "4"]
    assert headers.get_all("k") == ["3", "4"]
    headers["k"] = "5"
    assert headers.get_all("k") == ["5"]


@pytest.mark.parametrize(
    "source",
    [
        {"a": ["1", "2"], "b": "3"},
        {"a": ("1", "2"), "b": ["3"]},
        [("a", "1"), ("b", "3"), ("a", "2")],
        (pair for pair in [("a", "1"), ("a", "2"), ("b", "3")]),
        Headers({"a": ["1", "2"], "b": "3"}),
        {"a": iter(["1", "2"]), "b": "3"},
    ],
)
def test_sources(source: object) -> None:
    headers = Headers(source)  # type: ignore[arg-type]
    assert (headers.get_all("a"), headers.get_all("b")) == (["1", "2"], ["3"])
    assert len(headers) == 2


def test_a_copy_is_independent() -> None:
    first = decode_headers(b"NATS/1.0 503 None\r\na: 1\r\n\r\n")
    for second in (Headers(first), copy.copy(first), copy.deepcopy(first)):
        assert second == first
        assert (second.status, second.description) == (503, "None")
    second = Headers(first)
    second.add("a", "2")
    assert first.get_all("a") == ["1"]


def test_equality() -> None:
    headers = Headers([("a", "1"), ("a", "2"), ("b", "3")])
    assert headers == Headers({"b": "3", "a": ["1", "2"]})
    assert headers == {"a": ["1", "2"], "b": "3"}
    assert headers != {"a": "1", "b": "3"}
    assert headers != Headers({"A": ["1", "2"], "b": "3"})
    assert headers != 5
    assert headers != {"a b": "1"}
    assert headers != {1: 2}
    assert headers != {"a": None}
    assert decode_headers(b"NATS/1.0 503\r\n\r\n") != Headers()
    with pytest.raises(TypeError):
        hash(headers)


def test_get_all_and_repr_show_but_do_not_give_away() -> None:
    headers = Headers([("a", "1"), ("a", "2")])
    headers.get_all("a").append("3")
    assert headers.get_all("a") == ["1", "2"]
    assert "'1'" in repr(headers)
    assert "'2'" in repr(headers)


# -- what is refused ---------------------------------------------------------------------

BAD_NAMES = ["", " ", "a b", " a", "a ", "a\tb", "a:", ":", "a:b", "a\r", "a\nb", "a\r\nb", "a\x00"]
BAD_NAMES += ["a\x7f", "ü", "a\u2028", "a\x1f", "\ud800"]
BAD_VALUES = ["a\r", "a\nb", "\n", "a\r\nEvil: 1", "a\x00b"]


def _ways(name: object, value: object) -> dict[str, object]:
    return {
        "mapping": lambda: Headers({name: value}),  # type: ignore[dict-item]
        "pairs": lambda: Headers([(name, value)]),  # type: ignore[list-item]
        "list": lambda: Headers({name: ["good", value]}),  # type: ignore[dict-item,list-item]
        "add": lambda: Headers().add(name, value),  # type: ignore[arg-type]
        "set": lambda: Headers().__setitem__(name, value),  # type: ignore[arg-type]
        "encode": lambda: encode_headers({name: value}),  # type: ignore[dict-item]
    }


@pytest.mark.parametrize("way", list(_ways("", "")))
@pytest.mark.parametrize(
    ("name", "value"),
    [(name, "x") for name in BAD_NAMES]
    + [("x", value) for value in BAD_VALUES]
    + [(name, "x") for name in (None, 5, b"a", ("a",))]  # type: ignore[list-item]
    + [("x", value) for value in (None, 5, b"v", 1.5, object())],  # type: ignore[list-item]
    ids=ascii,
)
def test_refused(way: str, name: object, value: object) -> None:
    with pytest.raises(HeaderError):
        _ways(name, value)[way]()  # type: ignore[operator]


@pytest.mark.parametrize("value", [[], (), [None], ["a", 5], [b"a"], [["a"]], {"a": "b"}.values()])
def test_lists_of_values(value: object) -> None:
    if value and all(isinstance(one, str) for one in value):  # type: ignore[attr-defined]
        assert Headers({"k": value}).get_all("k") == ["b"]  # type: ignore[dict-item]
        return
    with pytest.raises(HeaderError):
        Headers({"k": value})  # type: ignore[dict-item]


def test_a_refused_set_changes_nothing() -> None:
    headers = Headers({"k": "1"})
    with pytest.raises(HeaderError):
        headers["k"] = ["2", "bad\n"]
    assert headers.get_all("k") == ["1"]


@pytest.mark.parametrize("source", [None, 5, "a: b", b"a: b", [1, 2], ["ab"], [("a",)], object()])
def test_sources_of_a_wrong_kind(source: object) -> None:
    with pytest.raises(HeaderError):
        encode_headers(source)  # type: ignore[arg-type]


def test_a_value_that_is_no_utf8() -> None:
    with pytest.raises(HeaderError):
        encode_headers({"a": "\ud800"})


# -- the wire ----------------------------------------------------------------------------


def test_encode() -> None:
    assert encode_headers({}) == b"NATS/1.0\r\n\r\n"
    assert encode_headers({"A": "b"}) == b"NATS/1.0\r\nA: b\r\n\r\n"
    headers = [("A", "1"), ("b", ""), ("A", "ü")]
    assert encode_headers(headers) == "NATS/1.0\r\nA: 1\r\nA: ü\r\nb: \r\n\r\n".encode()


@pytest.mark.parametrize(
    ("block", "pairs"),
    [
        (b"NATS/1.0\r\n\r\n", []),
        (b"NATS/1.0\r\nA: b\r\n\r\n", [("A", "b")]),
        (b"NATS/1.0\r\nA:b\r\n\r\n", [("A", "b")]),
        (b"NATS/1.0\r\nA:   b  \r\n\r\n", [("A", "b")]),
        (b"NATS/1.0\r\nA:\tb\r\n\r\n", [("A", "b")]),
        (b"NATS/1.0\r\nA:\r\n\r\n", [("A", "")]),
        (b"NATS/1.0\r\nA: b: c\r\n\r\n", [("A", "b: c")]),
        (b"NATS/1.0\r\nA: 1\r\nB: 2\r\nA: 3\r\n\r\n", [("A", "1"), ("A", "3"), ("B", "2")]),
        ("NATS/1.0\r\nA: ü🎈\r\n\r\n".encode(), [("A", "ü🎈")]),
        # read generously
        (b"NATS/1.0\r\nno colon\r\nA: b\r\n\r\n", [("A", "b")]),
        (b"NATS/1.0", []),
        (b"NATS/1.0\r\nA: b", [("A", "b")]),
    ],
)
def test_decode(block: bytes, pairs: list[tuple[str, str]]) -> None:
    headers = decode_headers(block)
    assert list(headers.pairs()) == pairs
    assert (headers.status, headers.description) == (None, "")


@pytest.mark.parametrize(
    ("line", "status", "description"),
    [
        (b" 503", 503, ""),
        (b" 100 Idle Heartbeat", 100, "Idle Heartbeat"),
        (b" 404 No Messages", 404, "No Messages"),
        (b" 408  Request  Timeout ", 408, "Request  Timeout"),
        (b"   503  ", 503, ""),
        (b"", None, ""),
        (b" ", None, ""),
        (b" abc", None, ""),
        (b" 50", None, ""),
        (b" 5031", None, ""),
        (b" -12", None, ""),
        (b" +12", None, ""),
        (b" 1_2", None, ""),
        (" ٥٠٣".encode(), None, ""),
        ("  ²³¹".encode(), None, ""),
        (b" \xff\xff\xff", None, ""),
    ],
)
def test_status_lines(line: bytes, status: int | None, description: str) -> None:
    headers = decode_headers(b"NATS/1.0" + line + b"\r\nA: b\r\n\r\n")
    assert headers.status == status
    assert headers.description == description
    assert headers["A"] == "b"


def test_the_status_reads_as_entries_and_is_never_sent() -> None:
    headers = decode_headers(b"NATS/1.0 404 No Messages\r\nA: b\r\n\r\n")
    assert (headers["Status"], headers["Description"]) == ("404", "No Messages")
    assert dict(headers) == {"A": "b", "Status": "404", "Description": "No Messages"}
    assert len(headers) == 3
    assert "Status" in headers
    assert encode_headers(headers) == b"NATS/1.0\r\nA: b\r\n\r\n"
    bare = decode_headers(b"NATS/1.0 503\r\n\r\n")
    assert dict(bare) == {"Status": "503"}
    assert "Description" not in bare
    assert "503" in repr(bare)


def test_real_entries_win_over_the_status() -> None:
    headers = decode_headers(b"NATS/1.0 503\r\nStatus: mine\r\n\r\n")
    assert headers["Status"] == "mine"
    assert headers.status == 503
    assert len(headers) == 1


def test_headers_with_a_status_can_be_changed_and_cleared() -> None:
    headers = decode_headers(b"NATS/1.0 503 None\r\nA: b\r\n\r\n")
    headers["B"] = "c"
    headers.clear()
    assert list(headers.pairs()) == []


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\r\n\r\n",
        b"NATS/1.",
        b"NATS/2.0\r\n\r\n",
        b"nats/1.0\r\n\r\n",
        b" NATS/1.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"A: b\r\n\r\n",
        b"\xff" * 100_000,
        b"NATS/1.05\r\n\r\n",
        b"NATS/1.0503\r\n\r\n",
        b"NATS/1.0x 503\r\n\r\n",
    ],
)
def test_no_header_block(block: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_headers(block)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\na b: x\r\n\r\n",
        b"NATS/1.0\r\na\nEvil: x\r\n\r\n",
        b"NATS/1.0\r\na: x\nEvil: y\r\n\r\n",
        b"NATS/1.0\r\na: x\rEvil: y\r\n\r\n",
        b"NATS/1.0\r\na: x\x00\r\n\r\n",
        b"NATS/1.0\r\n: x\r\n\r\n",
        b"NATS/1.0\r\n\xff: x\r\n\r\n",
    ],
)
def test_what_a_hostile_peer_sent_is_read_but_not_sent_on(block: bytes) -> None:
    headers = decode_headers(block)
    with pytest.raises(HeaderError):
        encode_headers(headers)
    with pytest.raises(HeaderError):
        encode_headers(dict(headers.pairs()))


@pytest.mark.parametrize("line", [b"\xff" * 10_000 + b": x", b"n" * 10_000 + b": x\0"])
def test_the_error_about_a_peers_header_is_short(line: bytes) -> None:
    headers = decode_headers(b"NATS/1.0\r\n" + line + b"\r\n\r\n")
    with pytest.raises(HeaderError) as caught:
        encode_headers(headers)
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=100))
def test_any_block_is_read_or_refused(tail: bytes) -> None:
    for block in (tail, b"NATS/1.0" + tail, b"NATS/1.0\r\n" + tail):
        try:
            headers = decode_headers(block)
        except ProtocolError:
            continue
        repr(headers)
        assert len(headers) == len(dict(headers))
        try:
            wire = encode_headers(headers)
        except HeaderError:
            continue
        assert list(decode_headers(wire).pairs()) == list(headers.pairs())


_NAMES = st.text([chr(c) for c in range(0x21, 0x7F) if c != ord(":")], min_size=1, max_size=8)
_TEXT = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=12)
_VALUES = _TEXT.map(lambda text: text.strip(" \t"))  # blanks around a value are no part of it


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=6))
def test_round_trip(pairs: list[tuple[str, str]]) -> None:
    headers = Headers(pairs)
    block = encode_headers(headers)
    again = decode_headers(block)
    assert again == headers
    assert list(again.pairs()) == list(headers.pairs())
    assert sorted(headers.pairs()) == sorted(pairs)
    assert block.count(b"\r\n") == len(pairs) + 2
    assert encode_headers(again) == block
