"""What may stand in a control line: a table of good and bad for each of the four encoders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnats.errors import BadSubjectError
from gnats.subjects import (
    MAX_NAME,
    check_control_line,
    encode_filter,
    encode_queue,
    encode_reply,
    encode_subject,
)

pytestmark = pytest.mark.sansio

Encoder = Callable[[str], bytes]
ENCODERS: dict[str, Encoder] = {
    "subject": encode_subject,
    "reply": encode_reply,
    "filter": encode_filter,
    "queue": encode_queue,
}
SUBJECTS = ["subject", "reply", "filter"]
ALL = list(ENCODERS)

# text, and the encoders that take it
GOOD = [
    ("a", ALL),
    ("a.b.c", ALL),
    ("foo.BAR.Baz-1_2", ALL),
    ("$SYS.REQ.SERVER.PING", ALL),
    ("$JS.API.>", ["filter", "queue"]),
    ("_INBOX.abc.1", ALL),
    ("grüße.日本.🎈", ALL),
    ("a*b.c>d.>e.f*", ALL),  # whole tokens alone are wildcards
    ("**", ALL),
    (">>", ALL),
    ("'\"{}[]|\\/:;,@#%&()=+?!~^`", ALL),
    ("a" * MAX_NAME, ALL),
    ("ü" * (MAX_NAME // 2), ALL),
    ("\u200b", ALL),  # no space to Unicode, nor to a server
    ("*", ["filter", "queue"]),
    (">", ["filter", "queue"]),
    ("*.*", ["filter", "queue"]),
    ("a.*.c", ["filter", "queue"]),
    ("a.>", ["filter", "queue"]),
    ("*.>", ["filter", "queue"]),
    ("PING", ALL),
    ("a.>.b", ["queue"]),
    ("workers 1".replace(" ", "."), ALL),
    (".a", ["queue"]),
    ("a.", ["queue"]),
    ("a..b", ["queue"]),
    (".", ["queue"]),
]

BAD = [
    "",
    " ",
    "a b",
    " a",
    "a ",
    "a\tb",
    "a\rb",
    "a\nb",
    "a\r\n",
    "a\r\nPUB b 0\r\n\r\n",
    "a\x00b",
    "a\x01",
    "a\x1f",
    "a\x7f",
    "a\x0bb",
    "a\x0cb",
    "a\x1cb",
    "a\x85b",
    "a\xa0b",
    "a\u1680b",
    "a\u2003b",
    "a\u2028b",
    "a\u2029b",
    "a\u202fb",
    "a\u205fb",
    "a\u3000b",
    "a\ud800",  # a lone surrogate
    "a" * (MAX_NAME + 1),
    "ü" * (MAX_NAME // 2 + 1),
]

BAD_SUBJECTS = [".", "..", ".a", "a.", "a..b", "a.b.", "...", ".*"]
BAD_FILTERS = ["a.>.b", ">.a", ">.>", "*.>.*"]
BAD_PUBLISH = ["*", ">", "a.*", "a.>", "*.a", "a.*.b"]

_BAD = (
    [(name, text) for name in ALL for text in BAD]
    + [(name, text) for name in SUBJECTS for text in BAD_SUBJECTS]
    + [("filter", text) for text in BAD_FILTERS]
    + [("subject", text) for text in BAD_PUBLISH]
)


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for text, names in GOOD for name in names],
    ids=lambda value: value[:20],
)
def test_good(name: str, text: str) -> None:
    assert ENCODERS[name](text) == text.encode()


@pytest.mark.parametrize(("name", "text"), _BAD, ids=lambda value: ascii(value[:20]))
def test_bad(name: str, text: str) -> None:
    with pytest.raises(BadSubjectError) as caught:
        ENCODERS[name](text)
    assert caught.value.subject == text
    assert caught.value.reason
    assert len(str(caught.value)) < 400
    str(caught.value).encode()  # an error that cannot be printed helps nobody


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [None, 5, b"a", bytearray(b"a"), ["a"], ("a",), object()])
def test_wrong_type(name: str, value: object) -> None:
    with pytest.raises(BadSubjectError, match="str"):
        ENCODERS[name](value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "word"),
    [("subject", "subject"), ("reply", "reply"), ("filter", "subject"), ("queue", "queue")],
)
def test_the_error_says_which_name_is_bad(name: str, word: str) -> None:
    with pytest.raises(BadSubjectError, match=word):
        ENCODERS[name]("a b")


@pytest.mark.parametrize("name", ALL)
@given(text=st.text(max_size=30))
def test_whatever_passes_is_one_word_of_a_control_line(name: str, text: str) -> None:
    try:
        wire = ENCODERS[name](text)
    except BadSubjectError:
        return
    assert wire.decode() == text
    assert wire.split() == [wire]
    assert wire.decode().split() == [text]
    assert not set(wire) & {0, 10, 13, 32, 127}


@pytest.mark.parametrize("name", ALL)
@given(text=st.text("ab.*>", max_size=8))
def test_tokens(name: str, text: str) -> None:
    tokens = text.split(".")
    good = bool(text)
    if name in SUBJECTS:
        good = good and "" not in tokens
    if name == "filter":
        good = good and ">" not in tokens[:-1]
    if name == "subject":
        good = good and not {"*", ">"} & set(tokens)
    if name == "reply" and {"*", ">"} & set(tokens):
        return  # a reply subject with wildcards is the caller's own affair
    try:
        ENCODERS[name](text)
    except BadSubjectError:
        assert not good
    else:
        assert good


def test_names_that_do_not_fit_together() -> None:
    check_control_line(b"a" * 2000, b"b" * 2000)
    check_control_line(b"a" * MAX_NAME)
    with pytest.raises(BadSubjectError):
        check_control_line(b"a" * 2000, b"b" * 2001)
    with pytest.raises(BadSubjectError):
        check_control_line(b"a" * 2000, b"b" * 2000, b"c")


def test_the_longest_names_fit_the_servers_control_line() -> None:
    # "HPUB <subject> <reply> <size> <size>\r\n" within the server's default of 4096 bytes.
    sizes = 2 * len(str(64 * 1024 * 1024))
    assert len("HPUB ") + MAX_NAME + 3 + sizes + 2 <= 4096
