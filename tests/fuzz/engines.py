"""Who makes new inputs: atheris where it is installed, else mutation at random, led by coverage.

An engine takes a target and a time, and returns the inputs that went new ways; a finding ends it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from fuzz import corpus
from fuzz.targets import TARGETS

WORDS = [
    *(b"MSG ", b"HMSG ", b"PING", b"PONG", b"+OK", b"-ERR ", b"INFO ", b"msg\t", b"{}", b"'", b'"'),
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b"\x0b", b"\x0c", b"\xff", b"\r\n\r\n"),
    *(b"MSG a 1 2\r\nhi\r\n", b"MSG a 1 r 0\r\n\r\n", b"HMSG a 1 12 13\r\nNATS/1.0\r\n\r\nx\r\n"),
    *(b"PING\r\n", b"PONG\r\n", b"INFO {}\r\n", b'INFO {"tls_required":true}\r\n', b"-ERR 'x'\r\n"),
    *(b"0", b"1", b"60", b"61", b"9" * 19, b"9" * 20, b"67108864", b"-1", b"1_0"),
    *(b"NATS/1.0", b" 503", b" 404 No Messages", b": ", b"Status:", b"A: b\r\n"),
    *(b'"server_id":"x"', b'"max_payload":1', b'"tls_required":true', b'"connect_urls":["a"]'),
    *(b"null", b"true", b"1e9", b"NaN", b"\\ud800", b"[", b"{", b"}", b",", b'"nonce":"n"'),
    *(b'Permissions Violation for Publish to "', b"Permissions Violation for Subscription to "),
    *(b' using queue "', b"with Reply of ", b"\\x01", b"\\u200b", b"\\U000e0001", b'\\"', b"\\\\"),
    *(b"Authorization Violation", b"Stale Connection", b"\xe2\x80\x8b", b".", b"*", b">"),
]


class Result(NamedTuple):
    """What a search brought: how many runs, new inputs, and an input that is a finding."""

    runs: int
    inputs: list[bytes]
    finding: bytes | None


def number_of(seed: str) -> int:
    """A seed of 31 bits, never 0, which means "any" to libFuzzer."""
    return int(hashlib.sha256(seed.encode()).hexdigest()[:8], 16) >> 1 | 1


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def fails(target: str, data: bytes) -> bool:
    try:
        TARGETS[target](data)
    except AssertionError:
        return True
    return False


# -- at random ---------------------------------------------------------------------------


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to four small changes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(_CHANGES)(rng, data, others)
    return data[: corpus.LONGEST]


def _piece(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.choice((1, 1, 2, 4, 9, 40, 300)))


def _byte(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    start, _ = _piece(rng, data)
    return data[:start] + bytes([rng.randrange(256)]) + data[start + 1 :]


def _choice(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    start = rng.randrange(6)
    return data[:start] + bytes([rng.choice((0, 1, 2, 3, 7, 8, 40, 255))]) + data[start + 1 :]


def _word(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    start, end = _piece(rng, data)
    return data[:start] + rng.choice(WORDS) + data[rng.choice((start, end)) :]


def _cut(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    start, end = _piece(rng, data)
    return data[:start] + data[end:]


def _again(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    start, end = _piece(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 3, 30)) + data[end:]


def _splice(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    start, end = _piece(rng, other)
    place = rng.randint(0, len(data))
    return data[:place] + other[start : rng.choice((end, len(other)))] + data[place:]


_CHANGES: list[Any] = [_byte, _choice, _word, _word, _cut, _again, _splice]


def at_random(target: str, seed: str, seconds: float, runs: int = sys.maxsize) -> Result:
    """Run what is known; then mutate it, and keep what goes new ways, until the time is over."""
    rng = random.Random(f"{seed}:{target}")
    pool = [*corpus.kept(target).values(), *corpus.seeds(target), b""]
    done: set[Any] = set()
    inputs: list[bytes] = []
    known = len(pool)
    ends = time.monotonic() + seconds
    run = 0
    while run < runs and (run < known or time.monotonic() < ends):
        data = pool[run] if run < known else mutate(rng, rng.choice(pool), pool)
        run += 1
        try:
            ways = corpus.features(target, data)
        except AssertionError:
            return Result(run, inputs, data)
        if ways - done:
            done |= ways
            inputs.append(data)
            pool.append(data)
    return Result(run, inputs, None)


# -- atheris -----------------------------------------------------------------------------


def with_atheris(target: str, seed: str, seconds: float) -> Result:
    """A process of its own: libFuzzer ends it, and its instruments would slow all others down."""
    with tempfile.TemporaryDirectory() as place:
        fresh, start, words = Path(place, "fresh"), Path(place, "start"), Path(place, "words")
        fresh.mkdir()
        start.mkdir()
        for data in (*corpus.kept(target).values(), *corpus.seeds(target)):
            (start / corpus.name_of(data)).write_bytes(data)
        words.write_text("\n".join(map(_quoted, WORDS)), encoding="ascii")
        flags = {
            "max_total_time": max(1, round(seconds)),
            "seed": number_of(f"{seed}:{target}"),
            "max_len": corpus.LONGEST,
            "dict": words,
            "artifact_prefix": f"{place}/",
            "timeout": 60,
            "print_final_stats": 1,
        }
        command = [sys.executable, "-m", "fuzz.guided", target, str(fresh), str(start)]
        command += [f"-{name}={value}" for name, value in flags.items()]
        done = subprocess.run(
            command, cwd=Path(__file__).parent.parent, stdout=-1, stderr=-2, check=False
        )
        output = done.stdout.decode("utf-8", "replace")
        artifacts = [
            file.read_bytes()
            for kind in ("crash", "timeout", "oom")
            for file in sorted(Path(place).glob(f"{kind}-*"))
        ]
        if done.returncode and not artifacts:
            raise RuntimeError(f"atheris did not run:\n{output[-3000:]}")
        inputs = [file.read_bytes() for file in sorted(fresh.glob("*"))]
    runs = [line.split()[-1] for line in output.splitlines() if "number_of_executed_units" in line]
    return Result(int(runs[0]) if runs else 0, inputs, artifacts[0] if artifacts else None)


def _quoted(word: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'
