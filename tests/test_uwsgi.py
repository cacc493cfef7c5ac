"""Real uWSGI with gevent workers: what they publish, subscribe, request, and how they end.

The application is loaded before the fork, of which Python does not hear, or by each worker
(lazy-apps). A message is accepted when the HTTP response that says so was read to its end.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

pytest.importorskip("pyuwsgi")

from guns import PATIENCE, TESTS, UWSGI, Load, uwsgi
from witness import Witness, roll_call

import gnats
from gnats.testing import ChaosProxy, NatsServer, free_port, wait_until

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(120)]

LAZY = pytest.mark.parametrize("lazy", [[], ["--lazy-apps"]], ids=["forked", "lazy"])


@pytest.fixture
def witness(nats_server: NatsServer) -> Iterator[Witness]:
    one = Witness(nats_server.url)
    yield one
    one.conn.close()


def assert_clean(web: UWSGI) -> None:
    for word in ("Traceback", "Exception", "Error", "died, killed by signal", "mercy expired"):
        assert word not in web.log, web.log


# -- life ----------------------------------------------------------------------------------


@LAZY
def test_every_worker_publishes_subscribes_and_requests(
    tmp_path: Path, nats_server: NatsServer, witness: Witness, lazy: list[str]
) -> None:
    with uwsgi(tmp_path, nats_server.url, "-p", "2", *lazy) as web:
        handling = roll_call(witness.conn, 2)  # before any request
        assert handling == set(web.workers)
        for path, number in (("/publish", 0), ("/flush", 1000), ("/ask", 2000)):
            reached: set[int] = set()
            while reached != handling:
                number += 1
                answer = web.get(f"{path}?n={number}")
                assert answer is not None, web.log
                assert answer.status == 200, web.log
                reached.add(answer.pid)
                if path != "/ask":
                    witness.await_all({number})
        answerers: set[int] = set()
        while answerers != handling:
            answerers.add(int(witness.conn.request("who", timeout=5.0).data))
        health = web.get("/health/ready")
        assert health is not None
        assert (health.status, '"ready": true' in health.body) == (200, True), health
        web.signal(signal.SIGTERM)
        assert web.await_end(PATIENCE) == 0, web.log
        assert set(web.ended_well) == handling
        assert web.log.count("own: started") == (0 if lazy else 2)  # lazy: it comes too late
        assert web.log.count("own: ended") == 2
        assert_clean(web)


def test_used_while_the_master_loads_the_application(
    tmp_path: Path,
    nats_server: NatsServer,
    witness: Witness,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_USED_AT_IMPORT", "1")
    loaded = witness.conn.subscribe("loaded.*")
    witness.conn.flush()
    with uwsgi(tmp_path, nats_server.url, "-p", "2") as web:
        workers = roll_call(witness.conn, 2)
        assert workers == set(web.workers)
        assert loaded.next_msg().subject == f"loaded.{web.process.pid}"
        for number in range(100):  # the master, whose loop stands still, is not in the group
            witness.conn.publish(f"jobs.{number}")
        witness.await_all(set(range(100)), "done")
        load = Load(web.port, "/ask")  # the replies come to whom they are for
        load.await_accepted(100)
        load.stop()
        assert {answer.status for answer in load.answers.values()} == {200}
        web.kill_worker(min(workers))
        wait_until(lambda: len(web.workers) == 3, PATIENCE, lambda: web.log)
        wait_until(
            lambda: roll_call(witness.conn, 2) == set(web.workers) - {min(workers)}, PATIENCE
        )
        web.signal(signal.SIGTERM)
        assert web.await_end(PATIENCE) == 0, web.log


@LAZY
def test_the_server_is_killed_and_comes_back(
    tmp_path: Path,
    nats_server: NatsServer,
    chaos_proxy: Callable[..., ChaosProxy],
    witness: Witness,
    lazy: list[str],
) -> None:
    # Through a proxy, so that the witness is back before the workers: core NATS delivers to those
    # who are there.
    proxy = chaos_proxy(nats_server.url)
    with uwsgi(tmp_path, proxy.url, "-p", "2", *lazy) as web:
        roll_call(witness.conn, 2)
        proxy.refuse()
        nats_server.kill()
        wait_until(lambda: not witness.conn.is_connected, PATIENCE)
        gevent.sleep(0.3)  # for the workers to see it, too
        load = Load(web.port, "/publish")
        load.await_accepted(200)
        nats_server.restart()
        wait_until(lambda: witness.conn.is_connected, PATIENCE)
        witness.conn.flush()
        proxy.listen()
        load.await_accepted(200)
        load.stop()
        assert {answer.status for answer in load.answers.values()} == {200}
        witness.await_all(load.accepted)
        roll_call(witness.conn, 2)
        assert_clean(web)


# -- the end of a worker -------------------------------------------------------------------


def recycled(web: UWSGI) -> None:
    wait_until(lambda: len(web.ended_well) >= 3, PATIENCE, lambda: web.log)


def reloaded(web: UWSGI) -> None:
    old = set(web.workers)
    web.command("w")
    wait_until(lambda: old <= set(web.ended_well), PATIENCE, lambda: web.log)
    web.await_workers(2, old)


def stopped(web: UWSGI) -> None:
    web.command("q")
    assert web.await_end(PATIENCE) == 0, web.log


def terminated(web: UWSGI) -> None:
    web.signal(signal.SIGTERM)
    assert web.await_end(PATIENCE) == 0, web.log


@LAZY
@pytest.mark.parametrize(
    "end", [recycled, reloaded, stopped, terminated], ids=lambda end: end.__name__
)
def test_nothing_accepted_is_lost(
    tmp_path: Path,
    nats_server: NatsServer,
    witness: Witness,
    rng: random.Random,
    lazy: list[str],
    end: Callable[[UWSGI], None],
) -> None:
    often = ["--min-worker-lifetime", "0", "--max-requests", str(rng.randint(40, 80))]
    arguments = ["-p", "2", *lazy, *(often if end is recycled else [])]
    with uwsgi(tmp_path, nats_server.url, *arguments) as web:
        roll_call(witness.conn, 2)
        loads = [Load(web.port, "/publish"), Load(web.port, "/late", first=1_000_000)]
        jobs = gevent.spawn(give_jobs, witness.conn)
        try:
            loads[0].await_accepted(rng.randint(50, 200))
            end(web)
        finally:
            jobs.kill()
            for load in loads:
                load.stop()
        if end is recycled:
            # One that is told to stop while it loads the application says no goodbye.
            wait_until(lambda: len(roll_call(witness.conn, 2)) == 2, PATIENCE, lambda: web.log)
        web.end()
        for load in loads:
            assert load.accepted
            witness.await_all(load.accepted)
            assert {answer.status for answer in load.answers.values()} == {200}
        assert witness.came["started"]
        witness.await_all(set(witness.came["started"]), "done")
        assert set(web.ended_well) == set(web.workers)
        assert_clean(web)


def give_jobs(conn: gnats.Connection) -> None:
    number = 0
    while True:
        number += 1
        conn.publish(f"jobs.{number}", b"")
        gevent.sleep(0.02)


@LAZY
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_it_ends_within_its_mercy(
    tmp_path: Path, nats_server: NatsServer, witness: Witness, lazy: list[str], up: bool
) -> None:
    mercy = 9
    arguments = ["-p", "2", "--worker-reload-mercy", str(mercy), "--reload-mercy", str(mercy)]
    with uwsgi(tmp_path, nats_server.url, *arguments, *lazy) as web:
        workers = roll_call(witness.conn, 2)
        if not up:
            nats_server.kill()
        late = gevent.spawn(web.get, "/late?n=7")
        assert web.get("/publish?n=8") is not None
        gevent.sleep(0.3)  # of the second that /late takes
        web.signal(signal.SIGTERM)
        assert web.await_end(mercy) == 0, web.log
        answer = late.get(timeout=PATIENCE)
        assert answer is not None, web.log  # the request under way was finished
        assert answer.status == 200
        assert set(web.ended_well) == workers
        assert_clean(web)
        if up:
            witness.await_all({7, 8})
        else:
            assert "gnats: stopped: drain did not end" in web.log


# -- elsewhere -----------------------------------------------------------------------------


def test_without_the_loop_of_gevent_it_is_refused(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-c", "import pyuwsgi; pyuwsgi.run()", "--need-app"),
        *("--http-socket", f"127.0.0.1:{free_port()}"),
        *("--pythonpath", str(TESTS), "--module", "uwsgi_app:app"),
    ]
    env = {**os.environ, "TEST_NATS_URL": "nats://127.0.0.1:1"}
    run = subprocess.run(command, env=env, capture_output=True, timeout=PATIENCE, check=False)
    assert run.returncode != 0
    assert b"start it with --gevent 100" in run.stderr


def test_outside_of_uwsgi_it_does_nothing() -> None:
    code = "import gnats.contrib.uwsgi, gnats.wsgi; assert gnats.wsgi._arbiter is None"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
