"""The inputs that are kept: where they lie, where they begin, which of them are worth their room.

``corpus/<target>/`` holds one file per input, named after its content. What once was a finding is
named ``found-...`` and is never thrown away; of the others, the smallest set that takes the rooms
through everything that all of them do.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from wire_cases import BAD, BAD_INFO, GOOD

import gnats
from fuzz.targets import TARGETS, TINY

PLACE = Path(__file__).parent / "corpus"
LONGEST = 2048  # bytes of one input
MOST = 200  # inputs of one target

# The rooms whose ways are told apart. A metered copy has the file name of its room.
ROOMS = ("commands", "handshake", "headers", "info", "message", "parser", "refusals", "subjects")
_FILES = {str(Path(gnats.__file__).parent / f"{room}.py") for room in ROOMS}

Features = frozenset[Any]


def name_of(data: bytes, found: bool = False) -> str:
    return ("found-" if found else "") + hashlib.sha256(data).hexdigest()[:16]


def kept(target: str) -> dict[str, bytes]:
    """The kept inputs of a target, by file name."""
    files = sorted((PLACE / target).glob("*"))
    return {file.name: file.read_bytes() for file in files}


def keep(target: str, data: bytes, found: bool = False) -> Path:
    """Keep one more input."""
    file = PLACE / target / name_of(data, found)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


# -- where they begin --------------------------------------------------------------------

_TALK = b'INFO {"server_id":"s","headers":true}\r\n+OK\r\nPING\r\n'
_WIRES = [case.wire for case in (*GOOD, *BAD)]
# Lines about as long as the tiny limits let them be, and what comes behind a long one.
_EDGES = [
    line + b"x" * (limit + more - len(line)) + end
    for line, limit in ((b"-ERR ", TINY.MAX_CONTROL_LINE), (b"INFO ", TINY.MAX_INFO_LINE))
    for more in (-1, 0, 1, 2)
    for end in (b"\r", b"\r\n", b"\r\r\n", b"\n", b"\r.\n")
]
_EDGES += [b"INFO {%b}\r\n" % (b" " * 60) + edge for edge in _EDGES]
_TALKS = [
    _TALK + b"PONG\r\n",
    _TALK + b"INFO {}\r\nPONG\r\nMSG a 1 2\r\nhi\r\nPING\r\nMSG a 1 2\r\nh",
    _TALK + b"PONG\r\nX\r\n",
    _TALK + b"MSG a 1 2\r\nhi\r\n",
    _TALK + b"-ERR 'Authorization Violation'\r\n",
    *(
        b'INFO {"tls_required":true}\r\n' + rest
        for rest in (b"", b"+", b"PONG\r\n", b"-ERR 'x'\r\n")
    ),
    *(b'INFO {"tls_available":true}\r\n' + rest for rest in (b"", b"+OK\r\nPONG\r\nPING\r\n")),
    b"-ERR 'Authorization Violation'\r\n",
    b"-ERR 'Stale Connection'\r\nX\r\n",
    *(b"INFO {}\r\n" + wire for wire in _WIRES),
]
_BLOCKS = [
    *(b" 503\r\n\r\n", b" 404 No Messages\r\nA: b\r\n\r\n", b"x", b"", b" 12\r\n"),
    *(b"\tx\r\nA:b\r\na: \xff\r\nA: \tc \r\n", b"\r\na b: x\n\r\nc: \0\r\n"),
    b"\r\nA: b: c\r\nno colon\r\n: x\r\n\r\n",
]
_INFOS = [
    *(b'{"max_payload":%b}' % size for size in (b"-1", b"0", b"1", b"67108864", b"67108865")),
    *(b'{"x":%b}' % number for number in (b"9" * 20, b"9" * 21, b"-" + b"9" * 19, b"1.5e9")),
    *(
        b'{"connect_urls":%b}' % urls
        for urls in (b"[]", b"null", b'["a","b:1"]', b'["a",1]', b'"a"')
    ),
    b'{"server_id":"nonce","nonce":"secret","tls_required":true,"ldm":null}',
]
_PAIRS = ["A:b:A:c", "A: b :\u00fc:x", "a b:x", "A:x\ny", "A:x\0", ":x", "A:\udc80"]
_WORDS = [
    *("slow consumer", "Server Shutdown", "PERMISSIONS VIOLATION for what", "Parser Error"),
    *("Stale Connection", "Authorization Violation", "User Authentication Expired", "other words"),
    *("maximum connections exceeded", "Secure Connection - TLS Required", "Permissions Violation"),
    'Permissions Violation for Publish with Reply of "a\\"b\\x01\\\\"',
    'Permissions Violation for Subscription to "a\\u200b\\U000e0001" using queue "q\\q"',
    'a"b\\c\u200b q\u00ad\U000e0001',
]
_NAMES = ["a.b\nr.1\nq\nvalue", "a.*\n\nq", "a.>\n>", ">.a\na..b", "\u00fc\n\udc80\n\t", "*"]
_LOOPS = [
    (b"", b"MSG a 1 1\r\nx\r\n", b""),
    (b"", b"MSG a 1 r 1\r\nx\r\n", b""),
    (b"MSG a 1 1000\r\n", b"\r\n", b""),
    (b"HMSG a 1 12 1000\r\nNATS/1.0\r\n\r\n", b"\n", b"\r\n"),
    (b"INFO {}\r\n", b"PING\r\n", b"PONG\r\n"),
    (b"INFO {", b" ", b"}\r\n"),
    (b"-ERR '", b"x'", b"\r\n"),
    (b"MSG ", b"s", b"\r\n"),
    (b'{"connect_urls":["a"', b',"b"', b"]}"),
    (b"A: b\r\n", b"A:c\r\n", b"\r\n"),
    (b"", b"\r\n", b""),
]


def seeds(target: str) -> list[bytes]:
    """Inputs made of what the other tests of the rooms know."""
    made = {
        "parser": [
            *(bytes([n % 8, n % 5, n]) + wire for n, wire in enumerate(_WIRES)),
            *(bytes([1, n % 3 * 20, n]) + wire for n, wire in enumerate(_EDGES)),
        ],
        "handshake": [
            *(bytes([n % 2, n % 5, n]) + wire for n, wire in enumerate(_TALKS)),
            *(bytes([flags, 0, 0]) + wire for wire in _TALKS[:14] for flags in (4, 6, 8, 12)),
        ],
        "headers": [b"\1" + block for block in _BLOCKS],
        "encode": [b"\1" + pairs.encode("utf-8", "surrogateescape") for pairs in _PAIRS],
        "info": [
            *_INFOS,
            *BAD_INFO.values(),
            *(wire[5:] for wire in _WIRES if wire[:4] == b"INFO"),
        ],
        "refusal": [bytes([n]) + words.encode() for n, words in enumerate(_WORDS * 2)],
        "commands": [b"\1\2" + names.encode("utf-8", "surrogateescape") for names in _NAMES],
        "work": [
            bytes([n % 8, n % 3, n, 255, len(head), len(part)]) + head + part + tail
            for n, (head, part, tail) in enumerate(_LOOPS * 3)
        ],
    }
    return [data for data in made[target] if len(data) <= LONGEST]


# -- what they do ------------------------------------------------------------------------


def features(target: str, data: bytes) -> Features:
    """The ways from line to line that an input takes through the rooms, and roughly how often.

    Raises AssertionError as the target does.
    """
    ways: Counter[Any] = Counter()
    last: Any = None

    def follow(frame: FrameType, event: str, _: object) -> Any:
        nonlocal last
        if event == "line":
            here = frame.f_code.co_filename, frame.f_lineno
            ways[last, here] += 1
            last = here
        return follow

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        return follow if frame.f_code.co_filename in _FILES else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        TARGETS[target](data)
    finally:
        sys.settrace(before)
    return frozenset((way, count.bit_length()) for way, count in ways.items())


def smallest(inputs: Iterable[tuple[bytes, Features]], most: int = MOST) -> list[bytes]:
    """A small set of inputs that does all that *inputs* do: the greedy one, short inputs first."""
    left = sorted(inputs, key=lambda one: (len(one[0]), one[0]))
    done: set[Any] = set()
    chosen: list[bytes] = []
    while len(chosen) < most:
        data, new = max(
            ((data, len(ways - done)) for data, ways in left),
            key=lambda one: one[1] / (len(one[0]) + 20),
            default=(b"", 0),
        )
        if not new:
            break
        chosen.append(data)
        done |= next(ways for one, ways in left if one == data)
        left = [(data, ways) for data, ways in left if ways - done]
    return chosen


def shrink(data: bytes, holds: Callable[[bytes], bool], tries: int = sys.maxsize) -> bytes:
    """A shorter input for which *holds* still does."""
    step = max(len(data) // 2, 1)
    while step:
        position = 0
        while position < len(data) and tries:
            tries -= 1
            shorter = data[:position] + data[position + step :]
            if holds(shorter):
                data = shorter
            else:
                position += step
        step //= 2
    return data


def rewrite(target: str, more: Iterable[bytes] = ()) -> tuple[int, int]:
    """Keep of the kept inputs, the seeds and *more* what is worth it, as short as it can be.
    Returns how many there were before and are now."""
    before = kept(target)
    found = {data for name, data in before.items() if name.startswith("found-")}
    candidates = {*before.values(), *seeds(target), *more} - found
    chosen = smallest((data, features(target, data)) for data in candidates if len(data) <= LONGEST)
    short = {_trimmed(target, data) for data in chosen}
    files = {name_of(data): data for data in short} | {name_of(data, True): data for data in found}
    for name in before.keys() - files.keys():
        (PLACE / target / name).unlink()
    for name, data in files.items():
        keep(target, data, name.startswith("found-"))
    return len(before), len(files)


def _trimmed(target: str, data: bytes) -> bytes:
    ways = features(target, data)
    return shrink(data, lambda shorter: ways <= features(target, shorter), tries=40)
