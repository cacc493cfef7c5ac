"""Who we say we are: URL before options, callables asked anew, nothing shown."""

from __future__ import annotations

from typing import Any

import pytest

from gnats import auth
from gnats.errors import OptionError
from gnats.options import ConnectionOptions
from gnats.url import ServerURL, parse_url

pytestmark = pytest.mark.sansio

HERE = ServerURL("h")


def Credentials(**fields: Any) -> auth.Credentials:  # noqa: N802
    return auth.Credentials(ConnectionOptions(**fields))


@pytest.mark.parametrize(
    ("credentials", "fields"),
    [
        (Credentials(), {}),
        (Credentials(user="u", password="p"), {"user": "u", "pass": "p"}),
        (Credentials(user="u"), {"user": "u"}),
        (Credentials(token="t"), {"auth_token": "t"}),
        (Credentials(user="", password=""), {"user": "", "pass": ""}),
        (Credentials(user=lambda: "u", password=lambda: "p"), {"user": "u", "pass": "p"}),
        (Credentials(user="u", password=lambda: "p"), {"user": "u", "pass": "p"}),
        (Credentials(token=lambda: "t"), {"auth_token": "t"}),
    ],
)
def test_from_the_options(credentials: Credentials, fields: dict[str, str]) -> None:
    assert credentials.connect_fields(HERE) == fields


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials(),
        Credentials(user="other", password="other"),
        Credentials(token="other"),
        Credentials(token=lambda: pytest.fail("asked although the URL says it")),
    ],
)
@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("nats://u:p@h", {"user": "u", "pass": "p"}),
        ("nats://t@h", {"auth_token": "t"}),
        ("nats://u%40x:p%3A@h", {"user": "u@x", "pass": "p:"}),
        ("nats://u:@h", {"user": "u", "pass": ""}),
    ],
)
def test_the_url_wins_whole(credentials: Credentials, url: str, fields: dict[str, str]) -> None:
    assert credentials.connect_fields(parse_url(url)) == fields


def test_callables_are_asked_anew_at_every_attempt() -> None:
    count = 0

    def rotating() -> str:
        nonlocal count
        count += 1
        return f"secret{count}"

    credentials = Credentials(user="u", password=rotating)
    assert count == 0
    for attempt in (1, 2, 3):
        assert credentials.connect_fields(HERE) == {"user": "u", "pass": f"secret{attempt}"}
    assert count == 3


@pytest.mark.parametrize("name", ["user", "password", "token"])
@pytest.mark.parametrize("value", [None, 5, b"hunter2", ["hunter2"]])
def test_a_callable_that_returns_no_str(name: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        Credentials(**{name: lambda: value}).connect_fields(HERE)
    assert caught.value.option == name
    assert "hunter2" not in str(caught.value)


def test_a_callable_that_raises_is_heard() -> None:
    class Vault(Exception):
        pass

    def ask() -> str:
        raise Vault

    with pytest.raises(Vault):
        Credentials(token=ask).connect_fields(HERE)


def test_nothing_is_shown() -> None:
    for credentials in (
        Credentials(user="u5er", password="hunter2"),
        Credentials(token="hunter2"),
    ):
        for shown in (repr(credentials), str(credentials)):
            assert "hunter2" not in shown
            assert "u5er" not in shown
