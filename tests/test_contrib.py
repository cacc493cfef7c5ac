"""The adapters to Flask and Django: where settings come from, and what lies around a handler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flask")
pytest.importorskip("django")

import flask

import gnats
from gnats.contrib.flask import Nats
from gnats.errors import BadURLError, Error, OptionError
from gnats.testing import NatsServer, wait_until

pytestmark = pytest.mark.frameworks


@pytest.fixture
def nats() -> Iterator[Nats]:
    """One that has no app yet."""
    one = Nats(reconnect_wait=0.05, name="default")
    yield one
    one.stop(0.5)


def make_app(url: str | None = None, **options: Any) -> Any:
    app = flask.Flask("shop")
    if url is not None:
        app.config["NATS_SERVERS"] = url
    app.config["NATS_OPTIONS"] = options
    return app


# -- Flask ---------------------------------------------------------------------------------


def test_flask_settings(nats: Nats) -> None:
    app = make_app("nats://a:1", name="shop", connect_wait=0.5)
    nats.init_app(app)
    assert app.extensions["nats"] is nats
    options = nats._conn.options
    assert (options.servers, options.name) == ("nats://a:1", "shop")
    assert options.reconnect.reconnect_wait == 0.05
    assert nats._connect_wait == 0.5


def test_flask_views_and_handlers(nats: Nats, shared_nats_server: NatsServer) -> None:
    seen: list[Any] = []
    steps: list[str] = []

    def around(msg: gnats.Msg, handle: Any) -> None:
        steps.append(flask.current_app.name)  # inside of the context
        handle()

    @nats.subscription("flask.orders.*", queue="workers")
    def handle(msg: gnats.Msg) -> None:
        seen.append((flask.current_app.name, msg.data))

    app = make_app(shared_nats_server.url, around=around)
    nats.init_app(app)

    @app.post("/orders")
    def order() -> Any:
        nats.publish("flask.orders.new", flask.request.data)
        return "", 202

    app.add_url_rule("/health/<probe>", "health", lambda probe: nats.health_app)

    client = app.test_client()
    assert client.post("/orders", data=b"pears").status_code == 202
    wait_until(lambda: seen)
    assert seen == [("shop", b"pears")]
    assert steps == ["shop"]
    answer = client.get("/health/ready")
    assert answer.status_code == 200
    assert answer.get_json()["ready"] is True


def test_flask_without_an_app(
    nats: Nats, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gnats.wsgi, "_living", {nats})
    nats.subscription("a")(print)
    with pytest.raises(Error, match="init_app"):
        nats.publish("a", b"1")
    gnats.wsgi.start_all()
    assert "nobody has told it where to connect" in caplog.text
    nats.stop()
    assert "unbound" in repr(nats)


def test_flask_bad_settings(nats: Nats) -> None:
    with pytest.raises(TypeError, match="NATS_SERVERS"):
        Nats("nats://a:1")  # type: ignore[arg-type]
    with pytest.raises(BadURLError):
        nats.init_app(make_app("http://a"))
    with pytest.raises(TypeError, match="max_reconnect"):
        nats.init_app(make_app(max_reconect=1))
    with pytest.raises(OptionError, match="around"):
        nats.init_app(make_app(around="x"))
    app = make_app()
    app.config["NATS_OPTIONS"] = "name=shop"
    with pytest.raises(OptionError, match="NATS_OPTIONS"):
        nats.init_app(app)


def test_flask_factories_of_tests(nats: Nats, shared_nats_server: NatsServer) -> None:
    url = shared_nats_server.url
    seen: list[Any] = []
    nats.subscription("flask.again")(
        lambda msg: seen.append(flask.current_app._get_current_object())
    )
    first, second = make_app(url), make_app(url)
    nats.init_app(first)
    nats.request_many("flask.nobody", timeout=0.1)
    nats.init_app(second)  # the same settings: the connection goes on
    nats.publish("flask.again")
    wait_until(lambda: seen)
    assert seen == [second]
    assert nats.connection.stats.connects == 1
    with pytest.raises(Error, match=r"stop\(\)"):
        nats.init_app(make_app(url, name="other"))
    nats.stop()
    nats.init_app(make_app(url, name="other"))
    assert nats.flush()


# -- Django --------------------------------------------------------------------------------

DJANGO = """
import django
from django.conf import settings
settings.configure(
    NATS={nats!r},
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {name!r}}}}},
)
django.setup()
from django.db import connection
from gnats.contrib.django import nats
"""


def run_django(tmp_path: Path, nats: Any, code: str) -> str:
    """What *code* prints in a project whose ``settings.NATS`` is *nats*."""
    script = tmp_path / "project.py"
    head = DJANGO.format(nats=nats, name=str(tmp_path / "db.sqlite3"))
    script.write_text(head + code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=50, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_django(tmp_path: Path, shared_nats_server: NatsServer) -> None:
    given = {"SERVERS": shared_nats_server.url, "OPTIONS": {"name": "shop", "connect_wait": 5.0}}
    output = run_django(
        tmp_path,
        given,
        """
@nats.subscription("django.sum", queue="workers")
def handle(msg):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 40 + 2")
        msg.respond(str(cursor.fetchone()[0]))

assert nats.is_bound
for _ in range(2):
    print(nats.request("django.sum", timeout=5.0).data)
print(nats.connection.options.name)
nats.stop()
""",
    )
    assert output == "b'42'\nb'42'\nshop\n"


def test_django_closes_old_databases_before_and_after(
    tmp_path: Path, shared_nats_server: NatsServer
) -> None:
    output = run_django(
        tmp_path,
        {"SERVERS": shared_nats_server.url},
        """
import gnats.contrib.django as adapter
adapter.close_old_connections = lambda: print("closed")

@nats.subscription("django.order")
def handle(msg):
    print("handled")
    if msg.data == b"fail":
        raise ValueError("no")

nats.publish("django.order", "fine")
nats.publish("django.order", "fail")
nats.stop()
""",
    )
    assert output.split() == ["closed", "handled", "closed"] * 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "SERVERS"),
        ({"SERVER": "nats://a:1"}, "SERVER"),
        ({"SERVERS": "http://a:1"}, "http"),
        ({"OPTIONS": {"max_reconect": 1}}, "max_reconnect"),
        ({"OPTIONS": {"connect_wait": -1}}, "connect_wait"),
    ],
)
def test_django_bad_settings(tmp_path: Path, given: Any, named: str) -> None:
    output = run_django(
        tmp_path,
        given,
        """
from django.core.exceptions import ImproperlyConfigured
try:
    nats.publish("a", b"1")
except ImproperlyConfigured as exc:
    print(exc)
""",
    )
    assert "settings.NATS" in output
    assert named in output
