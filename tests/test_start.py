"""docs/start.md to its end: the application of a newcomer, under gunicorn, survives its server."""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gunicorn")

from gevent.subprocess import STDOUT, Popen
from guns import PATIENCE

from gnats.testing import NatsServer, free_port, wait_until

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(120)]

START = Path(__file__).parent.parent / "docs" / "start.md"


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
