"""Real gunicorn with gevent workers: what they publish, subscribe, request, and how they end.

What is counted is counted by a subscriber of the test's own. A message is accepted when the HTTP
response that says so was read to its end.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import gevent
import pytest

pytest.importorskip("gunicorn")

from guns import PATIENCE, Gunicorn, Load, gunicorn
from witness import Witness, roll_call

import gnats
from gnats.testing import ChaosProxy, NatsServer, wait_until

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(120)]

PRELOAD = pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["own", "preload"])


@pytest.fixture
def witness(nats_server: NatsServer) -> Iterator[Witness]:
    one = Witness(nats_server.url)
    yield one
    one.conn.close()


def assert_clean(guns: Gunicorn) -> None:
    for word in ("Traceback", "Exception", "internal error", "SIGKILL", "graceful timeout"):
        assert word not in guns.log, guns.log


# -- life ----------------------------------------------------------------------------------


@PRELOAD
@pytest.mark.parametrize("count", [2, 4])
def test_every_worker_publishes_subscribes_and_requests(
    tmp_path: Path, nats_server: NatsServer, witness: Witness, preload: list[str], count: int
) -> None:
    with gunicorn(tmp_path, nats_server.url, "-w", str(count), *preload) as guns:
        # Before any request: the handlers of the workers answer, and those of no other process.
        handling = roll_call(witness.conn, count)
        assert handling == set(guns.workers)
        for path in ("/publish", "/flush", "/ask"):
            number = {"/publish": 0, "/flush": 1000, "/ask": 2000}[path]
            reached: set[int] = set()
            while reached != handling:
                number += 1
                answer = guns.get(f"{path}?n={number}")
                assert answer is not None, guns.log
                assert answer.status == 200, guns.log
                reached.add(answer.pid)
                if path != "/ask":
                    witness.await_all({number})
        answerers: set[int] = set()
        while answerers != handling:  # a queue group: each gets a share, and one answers
            answerers.add(int(witness.conn.request("who", timeout=5.0).data))
        health = guns.get("/health/ready")
        assert health is not None
        assert (health.status, '"ready": true' in health.body) == (200, True), health
        guns.signal(signal.SIGTERM)
        assert guns.await_end(PATIENCE) == 0, guns.log
        assert set(guns.ended_well) == handling
        assert_clean(guns)


def test_used_while_the_arbiter_loads_the_application(
    tmp_path: Path, nats_server: NatsServer, witness: Witness
) -> None:
    loaded = witness.conn.subscribe("loaded.*")
    witness.conn.flush()
    arguments = ["-w", "2", "--preload", "-e", "TEST_USED_AT_IMPORT=1"]
    with gunicorn(tmp_path, nats_server.url, *arguments) as guns:
        workers = roll_call(witness.conn, 2)
        assert workers == set(guns.workers)
        assert loaded.next_msg().subject == f"loaded.{guns.process.pid}"
        # The arbiter, whose loop stands still, is no member of the group.
        for number in range(100):
            witness.conn.publish(f"jobs.{number}")
        witness.await_all(set(range(100)), "done")
        load = Load(guns.port, "/publish", first=1000)
        load.await_accepted(50)
        guns.signal(signal.SIGHUP)
        wait_until(lambda: workers <= set(guns.ended_well), PATIENCE, lambda: guns.log)
        guns.await_workers(2, workers)
        load.stop()
        guns.signal(signal.SIGTERM)
        assert guns.await_end(PATIENCE) == 0, guns.log
        witness.await_all(load.accepted)
        assert set(guns.ended_well) == set(guns.workers)
        assert_clean(guns)


# -- the end of a worker -------------------------------------------------------------------


def recycled(guns: Gunicorn) -> None:
    wait_until(lambda: len(guns.ended_well) >= 3, PATIENCE, lambda: guns.log)


def reloaded(guns: Gunicorn) -> None:
    old = set(guns.workers)
    guns.signal(signal.SIGHUP)
    wait_until(lambda: old <= set(guns.ended_well), PATIENCE, lambda: guns.log)
    guns.await_workers(2, old)


def stopped(guns: Gunicorn) -> None:
    guns.signal(signal.SIGTERM)
    assert guns.await_end(PATIENCE) == 0, guns.log


@PRELOAD
@pytest.mark.parametrize("end", [recycled, reloaded, stopped], ids=lambda end: end.__name__)
def test_nothing_accepted_is_lost(
    tmp_path: Path,
    nats_server: NatsServer,
    witness: Witness,
    rng: random.Random,
    preload: list[str],
    end: Callable[[Gunicorn], None],
) -> None:
    count = rng.choice([2, 4])
    often = ["--max-requests", str(rng.randint(40, 80))] if end is recycled else []
    with gunicorn(tmp_path, nats_server.url, "-w", str(count), *preload, *often) as guns:
        roll_call(witness.conn, count)
        loads = [Load(guns.port, "/publish"), Load(guns.port, "/late", first=1_000_000)]
        jobs = gevent.spawn(_give_jobs, witness.conn)
        try:
            loads[0].await_accepted(rng.randint(50, 200))
            end(guns)
        finally:
            jobs.kill()
            for load in loads:
                load.stop()
        if end is not stopped:
            # A worker that is told to stop in the moment of its birth is deaf to it, and would be
            # killed in the end.
            wait_until(lambda: not guns.leaving, PATIENCE, lambda: guns.log)
            roll_call(witness.conn, count)
            guns.end()
        _assert_none_lost(witness, loads)
        started = set(witness.came["started"])
        assert started
        witness.await_all(started, "done")
        assert set(guns.ended_well) == set(guns.workers)
        assert_clean(guns)


def _give_jobs(conn: gnats.Connection) -> None:
    number = 0
    while True:
        number += 1
        conn.publish(f"jobs.{number}", b"")
        gevent.sleep(0.02)


def _assert_none_lost(witness: Witness, loads: list[Load]) -> None:
    accepted = set().union(*(load.accepted for load in loads))
    assert accepted
    witness.await_all(accepted)
    for load in loads:
        assert {answer.status for answer in load.answers.values()} == {200}


@PRELOAD
@pytest.mark.parametrize("path", ["/publish", "/flush"])
def test_a_killed_worker_takes_with_it_only_what_it_had_not_flushed(
    tmp_path: Path,
    nats_server: NatsServer,
    witness: Witness,
    rng: random.Random,
    preload: list[str],
    path: str,
) -> None:
    with gunicorn(tmp_path, nats_server.url, "-w", "2", *preload) as guns:
        roll_call(witness.conn, 2)
        load = Load(guns.port, path)
        killed = set()
        for _ in range(3):
            load.await_accepted(rng.randint(30, 100))
            victim = rng.choice(sorted(guns.await_workers(2, killed)))
            guns.kill_worker(victim)
            killed.add(victim)
            guns.await_workers(2, killed)
        load.stop()
        others = {n for n in load.accepted if load.answers[n].pid not in killed}
        assert others
        witness.await_all(load.accepted if path == "/flush" else others)
        assert len(roll_call(witness.conn, 2) - killed) == 2
        assert "Traceback" not in guns.log, guns.log


@PRELOAD
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_it_ends_within_graceful_timeout(
    tmp_path: Path, nats_server: NatsServer, witness: Witness, preload: list[str], up: bool
) -> None:
    graceful = 9
    arguments = ["-w", "2", "--graceful-timeout", str(graceful), *preload]
    with gunicorn(tmp_path, nats_server.url, *arguments) as guns:
        workers = roll_call(witness.conn, 2)
        witness.conn.publish("jobs.1", b"")
        wait_until(lambda: witness.has({1}, "started"), PATIENCE)
        if not up:
            witness.await_all({1}, "done")
            nats_server.kill()
        late = gevent.spawn(guns.get, "/late?n=7")
        assert guns.get("/publish?n=8") is not None
        gevent.sleep(0.3)  # of the second that /late takes
        guns.signal(signal.SIGTERM)
        assert guns.await_end(graceful) == 0, guns.log
        answer = late.get(timeout=PATIENCE)
        assert answer is not None, guns.log  # the request under way was finished
        assert answer.status == 200
        assert set(guns.ended_well) == workers
        assert_clean(guns)
        if up:
            witness.await_all({7, 8})
            witness.await_all({1}, "done")
        else:
            assert "gnats: stopped: drain did not end" in guns.log


# -- the server is away --------------------------------------------------------------------


@PRELOAD
def test_workers_that_start_without_a_server(
    tmp_path: Path,
    chaos_proxy: Callable[..., ChaosProxy],
    nats_server: NatsServer,
    witness: Witness,
    preload: list[str],
) -> None:
    proxy = chaos_proxy(nats_server.url)
    proxy.refuse()
    with gunicorn(tmp_path, proxy.url, "-w", "2", *preload) as guns:
        guns.await_workers(2)
        load = Load(guns.port, "/publish")
        load.await_accepted(100)
        live, ready = guns.get("/health/live"), guns.get("/health/ready")
        assert live is not None
        assert ready is not None
        assert (live.status, ready.status) == (200, 503)
        assert witness.came["seen"] == []
        proxy.listen()
        roll_call(witness.conn, 2)
        load.stop()
        witness.await_all(load.accepted)
        assert {answer.status for answer in load.answers.values()} == {200}
        limit = 2.0 + 1.0  # connect_wait and publish_timeout
        assert max(answer.seconds for answer in load.answers.values()) <= limit
        assert "connect_wait" in guns.log  # said once for each worker
        assert guns.log.count("connect_wait") <= 2
        assert_clean(guns)


@pytest.mark.slow
@PRELOAD
def test_ten_seconds_without_a_server(
    tmp_path: Path,
    nats_server: NatsServer,
    chaos_proxy: Callable[..., ChaosProxy],
    witness: Witness,
    preload: list[str],
) -> None:
    # The workers reach the server through a proxy: so it can be arranged that the witness is back
    # before them. Core NATS delivers to those who are there.
    proxy = chaos_proxy(nats_server.url)
    with gunicorn(tmp_path, proxy.url, "-w", "2", *preload) as guns:
        roll_call(witness.conn, 2)
        load = Load(guns.port, "/publish", clients=30, pause=0.1)  # 200/s and more
        load.await_accepted(200)
        surely_there = load.accepted
        gevent.sleep(0.5)  # and what comes now may be on its way when the server dies
        proxy.refuse()
        nats_server.kill()
        down = monotonic()
        gevent.sleep(0.2)
        on_the_way = load.accepted - surely_there
        gevent.sleep(10.0 - (monotonic() - down))
        nats_server.restart()
        wait_until(lambda: witness.conn.is_connected, PATIENCE)
        witness.conn.flush()
        proxy.listen()
        meanwhile = len(load.answers) - len(surely_there) - len(on_the_way)
        roll_call(witness.conn, 2)
        load.await_accepted(100)
        load.stop()
        assert meanwhile >= 9.8 * 200, f"the load was only {meanwhile} requests"
        assert load.unfinished == 0
        assert {answer.status for answer in load.answers.values()} == {200}
        # The limit of one publish: connect_wait was long over, and it is publish_timeout then.
        assert max(answer.seconds for answer in load.answers.values()) <= 1.0
        witness.await_all(load.accepted - on_the_way)
        assert_clean(guns)
