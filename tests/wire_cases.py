"""What a server may send, and what it may not: bytes and the events they mean. Data only.

``GOOD`` and ``BAD`` are run by test_parser.py, on every implementation of the parser, whole, byte
by byte, and in random chunks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gnats.message import Msg
from gnats.parser import Info

# An event in a form that can be compared: the event types are tuples, and Ping() == Pong().
Plain = tuple[Any, ...]


def plain(event: Any) -> Plain:
    """The event's kind and everything it says."""
    if isinstance(event, Msg):
        kind = "MSG" if event.block is None else "HMSG"
        assert type(event.data) is bytes
        assert event.sub is None
        return kind, event.subject, event.sid, event.reply, event.block, event.data
    if isinstance(event, Info):
        return "INFO", dict(event.info.raw)
    return (type(event).__name__.upper(), *event)


def msg(subject: str, sid: int, data: bytes, reply: str = "") -> Plain:
    return "MSG", subject, sid, reply, None, data


def hmsg(subject: str, sid: int, block: bytes, data: bytes, reply: str = "") -> Plain:
    return "HMSG", subject, sid, reply, block, data


PING: Plain = ("PING",)
PONG: Plain = ("PONG",)
OK: Plain = ("OK",)


class Case(NamedTuple):
    """*events* come of *wire*; for bad input, before its fault."""

    name: str
    wire: bytes
    events: list[Plain]


# Every word of the protocol, line ends of each kind, and a whole message, inside a payload.
_TRAP = b"\r\nPING\r\n+OK\r\n-ERR 'x'\r\nMSG a 1 2\r\nhi\r\n\n\r\r\n\x00"
_BLOCK = b"NATS/1.0\r\nA: b\r\n\r\n"  # 18 bytes
_STATUS = b"NATS/1.0 503\r\n\r\n"  # 16 bytes
_LARGE = bytes(range(256)) * 300

GOOD = [
    # -- MSG
    Case("msg", b"MSG a.b 7 5\r\nhello\r\n", [msg("a.b", 7, b"hello")]),
    Case("msg with reply", b"MSG a 1 _INBOX.x 2\r\nhi\r\n", [msg("a", 1, b"hi", "_INBOX.x")]),
    Case("msg empty", b"MSG a 1 0\r\n\r\n", [msg("a", 1, b"")]),
    Case("msg empty with reply", b"MSG a 1 r 0\r\n\r\n", [msg("a", 1, b"", "r")]),
    Case("msg of one CRLF", b"MSG a 1 2\r\n\r\n\r\n", [msg("a", 1, b"\r\n")]),
    Case("msg of LF", b"MSG a 1 1\r\n\n\r\n", [msg("a", 1, b"\n")]),
    Case("msg ending in CR", b"MSG a 1 2\r\nx\r\r\n", [msg("a", 1, b"x\r")]),
    Case("msg of words", b"MSG a 1 %d\r\n%b\r\n" % (len(_TRAP), _TRAP), [msg("a", 1, _TRAP)]),
    Case("msg large", b"MSG a 1 %d\r\n%b\r\n" % (len(_LARGE), _LARGE), [msg("a", 1, _LARGE)]),
    Case("msg leading zeros", b"MSG a 01 002\r\nhi\r\n", [msg("a", 1, b"hi")]),
    Case("msg lower case", b"msg A 1 2\r\nhi\r\n", [msg("A", 1, b"hi")]),
    Case("msg mixed case", b"mSg a 1 R 2\r\nhi\r\n", [msg("a", 1, b"hi", "R")]),
    Case("msg blanks", b"MSG   a \t 1\t\t2  \r\nhi\r\n", [msg("a", 1, b"hi")]),
    Case("msg tabs", b"MSG\ta\t1\tr\t2\r\nhi\r\n", [msg("a", 1, b"hi", "r")]),
    Case(
        "msg subject like a verb", b"MSG PING 1 PONG 2\r\nhi\r\n", [msg("PING", 1, b"hi", "PONG")]
    ),
    Case("msg UTF-8 subject", "MSG grüße 1 2\r\nhi\r\n".encode(), [msg("grüße", 1, b"hi")]),
    Case("msg largest sid", b"MSG a %d 0\r\n\r\n" % (2**63 - 1), [msg("a", 2**63 - 1, b"")]),
    Case("msg twice the same line", b"MSG a 1 1\r\nx\r\n" * 2, [msg("a", 1, b"x")] * 2),
    Case(
        "msg same line, other payloads",
        b"MSG a 1 r 1\r\nx\r\nMSG a 1 r 1\r\ny\r\n",
        [msg("a", 1, b"x", "r"), msg("a", 1, b"y", "r")],
    ),
    # -- names that no good client publishes to: the server passes them on as they are
    Case("subject not UTF-8", b"MSG \xff\xfe 1 0\r\n\r\n", [msg("\udcff\udcfe", 1, b"")]),
    Case("reply not UTF-8", b"MSG a 1 \xff 0\r\n\r\n", [msg("a", 1, b"", "\udcff")]),
    Case("subject with VT", b"MSG a\x0b99 1 2\r\nhi\r\n", [msg("a\x0b99", 1, b"hi")]),
    Case("subject with FF", b"MSG a\x0c99 1 2\r\nhi\r\n", [msg("a\x0c99", 1, b"hi")]),
    Case("subject with CR", b"MSG a\r99 1 2\r\nhi\r\n", [msg("a\r99", 1, b"hi")]),
    Case("subject with NUL", b"MSG a\x00 1 2\r\nhi\r\n", [msg("a\x00", 1, b"hi")]),
    Case("subject of VT", b"MSG \x0b\t1 \t2 \r\nhi\r\n", [msg("\x0b", 1, b"hi")]),
    Case("reply with VT", b"MSG a 1 b\x0b7 2\r\nhi\r\n", [msg("a", 1, b"hi", "b\x0b7")]),
    Case(
        "hmsg of odd names",
        b"HMSG \r\x0b 1 \xe9\x0c 16 18\r\n" + _STATUS + b"hi\r\n",
        [hmsg("\r\x0b", 1, _STATUS, b"hi", "\udce9\x0c")],
    ),
    # -- HMSG
    Case("hmsg", b"HMSG a 1 18 20\r\n" + _BLOCK + b"hi\r\n", [hmsg("a", 1, _BLOCK, b"hi")]),
    Case(
        "hmsg with reply",
        b"HMSG a 1 r.x 18 20\r\n" + _BLOCK + b"hi\r\n",
        [hmsg("a", 1, _BLOCK, b"hi", "r.x")],
    ),
    Case("hmsg empty body", b"HMSG a 1 18 18\r\n" + _BLOCK + b"\r\n", [hmsg("a", 1, _BLOCK, b"")]),
    Case("hmsg without a block", b"HMSG a 1 0 2\r\nhi\r\n", [hmsg("a", 1, b"", b"hi")]),
    Case(
        "hmsg status only",
        b"HMSG _INBOX.1 9 16 16\r\n" + _STATUS + b"\r\n",
        [hmsg("_INBOX.1", 9, _STATUS, b"")],
    ),
    Case(
        "hmsg body is CRLF",
        b"HMSG a 1 18 20\r\n" + _BLOCK + b"\r\n" * 2,
        [hmsg("a", 1, _BLOCK, b"\r\n")],
    ),
    Case(
        "hmsg body of words",
        b"HMSG a 1 18 %d\r\n%b%b\r\n" % (18 + len(_TRAP), _BLOCK, _TRAP),
        [hmsg("a", 1, _BLOCK, _TRAP)],
    ),
    Case(
        "hmsg any case, tabs",
        b"hMsG\ta  1\t16   16\r\n" + _STATUS + b"\r\n",
        [hmsg("a", 1, _STATUS, b"")],
    ),
    Case(
        "hmsg and msg of the same words",
        b"HMSG a 1 16 16\r\n" + _STATUS + b"\r\nMSG a 1 16 16\r\n" + _STATUS + b"\r\n",
        [hmsg("a", 1, _STATUS, b""), msg("a", 1, _STATUS, "16")],
    ),
    # -- one word
    Case("ping", b"PING\r\n", [PING]),
    Case("ping lower case", b"ping\r\n", [PING]),
    Case("ping blanks", b"PiNg \t \r\n", [PING]),
    Case("pong", b"PONG\r\n", [PONG]),
    Case("pong mixed case", b"pOnG\t\r\n", [PONG]),
    Case("ok", b"+OK\r\n", [OK]),
    Case("ok lower case", b"+ok \r\n", [OK]),
    Case("one of each", b"PING\r\n+OK\r\nPONG\r\nPING\r\n", [PING, OK, PONG, PING]),
    # -- -ERR
    Case("err", b"-ERR 'Stale Connection'\r\n", [("ERR", "Stale Connection")]),
    Case("err lower case", b"-err 'x'\r\n", [("ERR", "x")]),
    Case("err mixed case, tabs", b"-eRr\t \t'Slow  Consumer' \t\r\n", [("ERR", "Slow  Consumer")]),
    Case("err without quotes", b"-ERR words\r\n", [("ERR", "words")]),
    Case("err without words", b"-ERR\r\n", [("ERR", "")]),
    Case(
        "err with a subject",
        b"-ERR 'Permissions Violation for Publish to \"a.b\"'\r\n",
        [("ERR", 'Permissions Violation for Publish to "a.b"')],
    ),
    Case("err not UTF-8", b"-ERR '\xff'\r\n", [("ERR", "\ufffd")]),
    # -- INFO
    Case(
        "info",
        b'INFO {"server_id":"x","port":4222}\r\n',
        [("INFO", {"server_id": "x", "port": 4222})],
    ),
    Case("info empty", b"INFO {}\r\n", [("INFO", {})]),
    Case("info lower case, tabs", b'info \t {"go":"1"} \t\r\n', [("INFO", {"go": "1"})]),
    Case("info tab", b'INFO\t{"ldm": true}\r\n', [("INFO", {"ldm": True})]),
    Case("info UTF-8", 'INFO {"server_name":"ü"}\r\n'.encode(), [("INFO", {"server_name": "ü"})]),
    Case(
        "info unknown field", b'INFO {"new":[{"a":null}]}\r\n', [("INFO", {"new": [{"a": None}]})]
    ),
    # -- all together
    Case(
        "a conversation",
        b'INFO {"proto":1}\r\n+OK\r\nPONG\r\nMSG a 1 3\r\nabc\r\nPING\r\nHMSG a 1 r 16 17\r\n'
        + _STATUS
        + b"z\r\n-ERR 'bye'\r\n",
        [
            ("INFO", {"proto": 1}),
            OK,
            PONG,
            msg("a", 1, b"abc"),
            PING,
            hmsg("a", 1, _STATUS, b"z", "r"),
            ("ERR", "bye"),
        ],
    ),
]

# What int() takes and the protocol does not, what it does not take either, and what is too much.
BAD_NUMBERS = [
    b"-1",
    b"+1",
    b"1_0",
    b"0x1",
    b"1.0",
    b"1e1",
    b"x",
    b"'1'",
    "\u0663".encode(),  # an Arabic-Indic three: a digit for str, not for us
    "\u00b2".encode(),
    b"9" * 20,
    b"9" * 4000,
]

_NUMBERS = [
    Case(f"{place}: {number[:12]!r}", line % number + b"\r\n1\r\n" * 3, [])
    for number in BAD_NUMBERS
    for place, line in {
        "msg sid": b"MSG a %b 1",
        "msg size": b"MSG a 1 %b",
        "msg size behind reply": b"MSG a 1 r %b",
        "hmsg sid": b"HMSG a %b 1 1",
        "hmsg header size": b"HMSG a 1 %b 99",
        "hmsg total": b"HMSG a 1 1 %b",
    }.items()
]

# INFO that is no JSON object.
BAD_INFO = {
    "nothing": b"",
    "not JSON": b"hello",
    "cut off": b'{"proto":1',
    "trailing bytes": b"{} {}",
    "an array": b"[]",
    "null": b"null",
    "a string": b'"x"',
    "a number": b"5",
    "single quotes": b"{'proto':1}",
    "not UTF-8": b'{"server_id":"\xff\xfe"}',
    "half a surrogate pair": b'{"server_id":"\xed\xa0\x80"}',
    "UTF-8 behind its mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16-le"),
    "UTF-32": "{}".encode("utf-32-be"),
    "NULs": b"\x00" * 40,
    "deep arrays": b"[" * 60_000,
    "deep objects": b'{"a":' * 12_000,
    "an int of 100 digits": b'{"client_id":' + b"1" * 100 + b"}",
    "huge int": b'{"max_payload":' + b"9" * 50_000 + b"}",
    "huge unknown int": b'{"x":1' + b"0" * 50_000 + b"}",
    "huge negative int": b'{"x":-' + b"9" * 50_000 + b"}",
}

BAD = [
    # -- no operation of a server
    Case("empty line", b"\r\n", []),
    Case("blank line", b" \t \r\n", []),
    Case("garbage", b"\x00\xff\x16\x03\x01garbage\r\n", []),
    Case("http", b"HTTP/1.1 400 Bad Request\r\n\r\n", []),
    Case("unknown", b"HELLO a 1 2\r\n", []),
    Case("client's pub", b"PUB a 2\r\nhi\r\n", []),
    Case("client's sub", b"SUB a 1\r\n", []),
    Case("glued", b"PINGPONG\r\n", []),
    Case("glued msg", b"MSGa 1 2\r\nhi\r\n", []),
    Case("ok without plus", b"OK\r\n", []),
    Case("err without minus", b"ERR 'x'\r\n", []),
    Case("half a word", b"PIN\r\n", []),
    # -- words of a message
    Case("msg without words", b"MSG\r\n", []),
    Case("msg of one word", b"MSG a\r\n", []),
    Case("msg of two words", b"MSG a 1\r\n\r\n", []),
    Case("msg of five words", b"MSG a 1 r 0 0\r\n\r\n", []),
    Case("hmsg without words", b"HMSG\r\n", []),
    Case("hmsg of three words", b"HMSG a 1 16\r\n" + _STATUS + b"\r\n", []),
    Case("hmsg of six words", b"HMSG a 1 r q 16 16\r\n" + _STATUS + b"\r\n", []),
    # -- sizes
    *_NUMBERS,
    Case("headers over total", b"HMSG a 1 17 16\r\n" + _STATUS + b"\r\n\r\n", []),
    Case("headers over total, reply", b"HMSG a 1 r 1 0\r\n\r\n\r\n", []),
    Case("over 64 MiB", b"MSG a 1 67108865\r\n", []),
    Case("hmsg over 64 MiB", b"HMSG a 1 16 67108865\r\n", []),
    Case("largest 19 digits", b"MSG a 1 9999999999999999999\r\n", []),
    # -- the end of a payload
    Case("payload longer", b"MSG a 1 2\r\nhix\r\n", []),
    Case("payload shorter", b"MSG a 1 5\r\nhi\r\nPING\r\n", []),
    Case("payload then LF", b"MSG a 1 2\r\nhi\n\n", []),
    Case("payload then CR CR", b"MSG a 1 2\r\nhi\r\r\n", []),
    Case("payload then next", b"MSG a 1 2\r\nhiPING\r\n", []),
    Case("empty payload, no end", b"MSG a 1 0\r\nPING\r\n", []),
    Case("hmsg body longer", b"HMSG a 1 16 17\r\n" + _STATUS + b"xy\r\n", []),
    # -- line ends
    Case("ping LF", b"PING\n", []),
    Case("ping LF, then good", b"PING\nPING\r\n", []),
    Case("ok LF, then good", b"+OK\nMSG a 1 2\r\nhi\r\n", []),
    Case("msg line LF", b"MSG a 1 2\nhi\r\n", []),
    Case("msg line LF, good words behind", b"MSG a\n1 2\r\nhi\r\n", []),
    Case("err LF", b"-ERR 'a'\n-ERR 'b'\r\n", []),
    Case("info LF", b"INFO {}\nPING\r\n", []),
    Case("info LF inside", b'INFO {"proto":\n1}\r\n', []),
    Case("CR inside", b"PING\r \r\n", []),
    Case("CR inside a word", b"PI\rNG\r\n", []),
    Case("err CR inside", b"-ERR 'a\rb'\r\n", []),
    Case("msg size and CR", b"MSG a 1 2\r\r\nhi\r\n", []),
    Case("VT is no blank", b"PING\x0b\r\n", []),
    Case("msg VT is no blank", b"MSG\x0ba 1 0\r\n\r\n", []),
    Case("LF alone", b"\n", []),
    Case("LF CR", b"PING\n\r\n", []),
    # -- INFO
    *(Case(f"info {name}", b"INFO " + body + b"\r\n", []) for name, body in BAD_INFO.items()),
    Case("info without blank", b"INFO{}\r\n", []),
    # -- after good ones: they are not lost
    Case("good, then unknown", b"PING\r\nMSG a 1 2\r\nhi\r\nXX\r\n", [PING, msg("a", 1, b"hi")]),
    Case("good, then an empty line", b"PING\r\n\r\n", [PING]),
    Case("good, then bad size", b"+OK\r\nMSG a 1 -1\r\n", [OK]),
    Case("good, then bad end", b"MSG a 1 1\r\nx\r\nMSG a 1 1\r\nxy\r\n", [msg("a", 1, b"x")]),
    Case("good, then bad info", b"INFO {}\r\nPONG\r\nINFO []\r\n", [("INFO", {}), PONG]),
    Case("good, then LF", b"PING\r\nPONG\n\r\n", [PING]),
    Case("bad, then good", b"PONG\r\nXX\r\nPING\r\n", [PONG]),
]
