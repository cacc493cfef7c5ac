"""The flags that every command knows: which servers, who we are, TLS, output; kinds of values.

Names are those of the `nats` program; so are the environment variables. A flag of a kind given on
the command line makes the environment's of that kind count no more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any

import gnats
from gnats.cli import exits

_DEFAULT_URL = "nats://127.0.0.1:4222"

# Each flag: its words, the environment variable that stands in for it, the option of gnats.
_WHO = {
    "user": ("NAME", "NATS_USER", "user name", "user"),
    "password": ("TEXT", "NATS_PASSWORD", "password", "password"),
    "token": ("TEXT", "NATS_TOKEN", "token", "token"),
    "creds": ("FILE", "NATS_CREDS", "credentials: a JWT and its seed", "user_credentials"),
    "nkey": ("FILE", "NATS_NKEY", "seed of an nkey", "nkeys_seed"),
}
_TLS = {
    "tlsca": ("FILE", "NATS_CA", "authorities to trust, in PEM", "ca"),
    "tlscert": ("FILE", "NATS_CERT", "our certificate, in PEM", "cert"),
    "tlskey": ("FILE", "NATS_KEY", "its key, in PEM", "key"),
}


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Servers, credentials and TLS: before the command or behind it."""
    group = parser.add_argument_group("connection")
    keep: Any = argparse.SUPPRESS  # what was said before the command stays
    group.add_argument(
        "-s",
        "--server",
        metavar="URL",
        default=keep,
        help=f"one server, or several joined by commas ($NATS_URL, or {_DEFAULT_URL})",
    )
    for name, (metavar, variable, words, _) in {**_WHO, **_TLS}.items():
        group.add_argument(
            f"--{name}", metavar=metavar, default=keep, help=f"{words} (${variable})"
        )
    group.add_argument(
        "--tlsfirst", action="store_true", default=keep, help="TLS before the server's INFO"
    )
    group.add_argument(
        "--connection-name", metavar="NAME", default=keep, help="shown in the server's monitoring"
    )
    group.add_argument(
        "--connect-timeout",
        metavar="S",
        type=seconds,
        default=keep,
        help="seconds for one attempt to connect (5)",
    )
    group.add_argument(
        "--retry",
        action="store_true",
        default=keep,
        help="no server yet: go on trying, instead of failing",
    )


def add_output(parser: argparse.ArgumentParser, raw: bool = False) -> None:
    """How results are told."""
    group = parser.add_argument_group("output")
    form = group.add_mutually_exclusive_group()
    if raw:
        form.add_argument("--raw", action="store_true", help="payloads only, a line each")
    form.add_argument("--json", action="store_true", help="JSON, one object per line")
    group.add_argument("-q", "--quiet", action="store_true", help="no notices but errors")


def refuse_connection(arguments: argparse.Namespace, command: str, *own: str) -> None:
    """For a command that connects to no server of the user's: nothing is accepted and ignored."""
    names = ("server", *_WHO, *_TLS, "tlsfirst", "connection_name", "connect_timeout", "retry")
    for name in names:
        if name not in own and hasattr(arguments, name):
            flag = name.replace("_", "-")
            raise exits.CommandError(f"`gnats {command}` takes no --{flag}", exits.USAGE)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields for ``gnats.connect`` by the flags and the environment. Raises CommandError."""
    given = _values(arguments, _WHO)
    if "password" in given and "user" not in given:
        raise exits.CommandError("--password needs --user (or $NATS_USER)", exits.USAGE)
    fields: dict[str, Any] = {_WHO[name][3]: value for name, value in given.items()}
    tls: dict[str, Any] = {_TLS[name][3]: value for name, value in _values(arguments, _TLS).items()}
    if tls:
        fields["tls"] = gnats.TLSOptions(**tls)
    if getattr(arguments, "tlsfirst", False):
        fields["tls_handshake_first"] = True
    if hasattr(arguments, "connect_timeout"):
        fields["connect_timeout"] = arguments.connect_timeout
    fields["name"] = getattr(arguments, "connection_name", "gnats command line")
    fields["retry_on_failed_connect"] = getattr(arguments, "retry", False)
    return fields


def servers(arguments: argparse.Namespace) -> str:
    """The URLs to connect to, joined by commas. Raises CommandError for an empty one."""
    given = getattr(arguments, "server", None)
    urls = str(os.environ.get("NATS_URL") or _DEFAULT_URL) if given is None else str(given)
    if not all(url.strip() for url in urls.split(",")):
        raise exits.CommandError(f"an empty URL among the servers: {urls!r}", exits.USAGE)
    return urls


def _values(arguments: argparse.Namespace, flags: dict[str, Any]) -> dict[str, str]:
    """What was given of *flags*; if nothing was, what the environment has."""
    given = {name: getattr(arguments, name, None) for name in flags}
    found = {name: value for name, value in given.items() if value is not None}
    if found:
        return found
    return {
        name: os.environ[variable]
        for name, (_, variable, _, _) in flags.items()
        if os.environ.get(variable)
    }


def check_subject(subject: str) -> None:
    """Before anything is begun: whether messages can go there. Raises BadSubjectError."""
    with contextlib.suppress(gnats.errors.ConnectionClosedError):  # looked at last
        gnats.Connection().publish(subject)


def check_filter(subject: str, queue: str) -> None:
    """Whether it can be subscribed to. Raises BadSubjectError."""
    with contextlib.suppress(gnats.errors.ConnectionClosedError):  # looked at last
        gnats.Connection().subscribe(subject, queue=queue)


# -- kinds of values ---------------------------------------------------------------------------


def seconds(text: str) -> float:
    """A duration in seconds; ``ms``, ``s``, ``m`` and ``h`` may stand behind it."""
    units = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    for unit in ("ms", "s", "m", "h"):
        if text.endswith(unit):
            number, factor = text[: -len(unit)], units[unit]
            break
    else:
        number, factor = text, 1.0
    try:
        value = float(number) * factor
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: 2, 0.5, 250ms, 1m")
    return value


def count(text: str) -> int:
    """A whole number from 1 on; 1_000 and 1,000 are welcome."""
    digits = text.replace(",", "").replace("_", "")
    if not digits.isdecimal() or not 1 <= int(digits) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is no count: 1 to 999,999,999")
    return int(digits)


def header(text: str) -> tuple[str, str]:
    """``Name: value``."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no header: 'Name: value'")
    try:
        gnats.Headers([(name.strip(), value.strip())])
    except gnats.errors.HeaderError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return name.strip(), value.strip()
