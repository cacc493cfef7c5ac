"""Pages to their ends: the applications of a newcomer. That of docs/start.md survives its server,
and those of docs/flask.md, django.md and celery.md do what their pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("gunicorn")

from gevent.subprocess import STDOUT, Popen
from guns import PATIENCE
from pages import files

import gnats
from gnats.testing import NatsServer, free_port, wait_until

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(120)]

DOCS = Path(__file__).parent.parent / "docs"
START = DOCS / "start.md"
URL = "nats://127.0.0.1:4222"
# Where the programs of the pages are; python is this one.
ENVIRON = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    "PYTHONUNBUFFERED": "1",
}


def blocks_of_the_chapter() -> tuple[str, str]:
    """The application, and gunicorn's configuration."""
    chapter = START.read_text("utf-8").partition("## A web application")[2].partition("\n## ")[0]
    app, conf = re.findall(r"^```python\n(.*?)^```$", chapter, re.M | re.S)
    return app, conf


def test_an_application_that_survives_its_server(tmp_path: Path, nats_server: NatsServer) -> None:
    app, conf = blocks_of_the_chapter()
    port = free_port()
    (tmp_path / "app.py").write_text(app.replace("nats://127.0.0.1:4222", nats_server.url))
    (tmp_path / "gunicorn.conf.py").write_text(conf + "control_socket_disable = True\n")
    log = tmp_path / "log"
    command = [sys.executable, "-u", "-m", "gunicorn", "app:application"]
    with open(log, "wb") as out:
        process = Popen(
            [*command, "-b", f"127.0.0.1:{port}"], cwd=tmp_path, stdout=out, stderr=STDOUT
        )
    try:
        orders = _Orders(port, log)
        wait_until(orders.one, PATIENCE)
        orders.await_handled()
        nats_server.kill()
        assert orders.one()  # nobody waits for the server
        assert orders.one()
        nats_server.restart()
        orders.await_handled()
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text("utf-8")


def save(page: str, folder: Path, server: NatsServer) -> None:
    """The files of a page, for *server*."""
    for name, text in files(DOCS / page).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text.replace(URL, server.url))


def line_of(page: str, begin: str) -> str:
    """The one command of a page that begins so."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(begin))
    return line


@contextmanager
def running(command: str, folder: Path) -> Iterator[Path]:
    """What a page has run in another terminal; gives its log. It must end well."""
    log = folder / "log"
    with open(log, "wb") as out:
        process = Popen(
            ["bash", "-c", f"exec {command}"], cwd=folder, env=ENVIRON, stdout=out, stderr=STDOUT
        )
    try:
        yield log
        process.terminate()
        assert process.wait(PATIENCE) == 0, log.read_text("utf-8")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text("utf-8")


def order_arrives(page: str, folder: Path, told: str) -> None:
    """Gunicorn as in *page*, and an order as there, which *told* in the log is about."""
    port = free_port()
    conf = files(DOCS / "gunicorn.md")["gunicorn.conf.py"]
    conf += f"bind = '127.0.0.1:{port}'\ncontrol_socket_disable = True\n"
    (folder / "gunicorn.conf.py").write_text(conf)
    assert line_of(page, "curl ") == "curl -d 'two apples' localhost:8000/orders"
    question = urllib.request.Request(f"http://127.0.0.1:{port}/orders", b"two apples")

    def order() -> bool:
        try:
            with urllib.request.urlopen(question, timeout=20) as answer:
                return bool(answer.status == 202)
        except urllib.error.HTTPError:
            raise
        except OSError:
            return False  # it does not listen yet

    with running(line_of(page, "gunicorn "), folder) as log:
        wait_until(order, PATIENCE)
        wait_until(lambda: told in log.read_text("utf-8"), PATIENCE)
        assert "Using worker: gevent" in log.read_text("utf-8")


def test_flask(tmp_path: Path, nats_server: NatsServer) -> None:
    pytest.importorskip("flask")
    save("flask.md", tmp_path, nats_server)
    order_arrives("flask.md", tmp_path, "an order: b'two apples'")


def test_django(tmp_path: Path, nats_server: NatsServer) -> None:
    pytest.importorskip("django")
    for begin in ("django-admin ", "python manage.py "):
        command = ["bash", "-c", line_of("django.md", begin)]
        subprocess.run(command, cwd=tmp_path, env=ENVIRON, check=True, timeout=PATIENCE)
    settings = tmp_path / "shop" / "settings.py"
    (more,) = re.findall(
        r"^```python\n(NATS = .*?)^```$", (DOCS / "django.md").read_text("utf-8"), re.M | re.S
    )
    text = settings.read_text().replace("INSTALLED_APPS = [", 'INSTALLED_APPS = [\n    "orders",')
    settings.write_text(text + more.replace(URL, nats_server.url))
    save("django.md", tmp_path, nats_server)
    order_arrives("django.md", tmp_path, "orders.new b'two apples'")


def test_celery(tmp_path: Path, nats_server: NatsServer) -> None:
    pytest.importorskip("celery")
    save("celery.md", tmp_path, nats_server)
    shop = tmp_path / "shop.py"
    (tmp_path / "queue").mkdir()
    # The page's broker is not here: a folder is.
    folders = {f"data_folder_{way}": "queue" for way in ("in", "out")}
    text, brokers = re.subn(
        r'broker="amqp.*$',
        f'broker="filesystem://")\napp.conf.broker_transport_options = {folders}',
        shop.read_text(),
        flags=re.M,
    )
    assert brokers == 1
    shop.write_text(text)
    with (
        running(line_of("celery.md", "celery "), tmp_path) as log,
        gnats.connect(nats_server.url) as conn,
    ):
        cooked = conn.subscribe("orders.cooked")
        assert line_of("celery.md", "gnats request ") == "gnats request orders.price 'two apples'"

        def price() -> bool:
            try:
                return conn.request("orders.price", b"two apples").data == b"12"
            except (gnats.errors.NoRespondersError, gnats.errors.TimeoutError):
                return False

        wait_until(price, PATIENCE, lambda: log.read_text("utf-8"))
        command = ["bash", "-c", line_of("celery.md", "python -c ")]
        subprocess.run(command, cwd=tmp_path, env=ENVIRON, check=True, timeout=PATIENCE)
        assert cooked.next_msg(timeout=PATIENCE).data == b"two apples"


class _Orders:
    """Asks for the page, and looks at what the handlers printed."""

    def __init__(self, port: int, log: Path) -> None:
        self._port, self._log = port, log
        self._ordered = 0

    def one(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/", timeout=20) as answer:
                assert (answer.status, answer.read()) == (200, b"ordered\n")
        except urllib.error.URLError:
            return False  # it does not listen yet
        self._ordered += 1
        return True

    def await_handled(self) -> None:
        """Each order, by one of the workers; one of the moment of the kill may come twice."""
        wait_until(
            lambda: self._log.read_text("utf-8").count("orders.new b'two apples'") >= self._ordered,
            PATIENCE,
            lambda: self._log.read_text("utf-8"),
        )
