"""Real Celery workers, with the gevent pool and with prefork: what their tasks publish and request,
what their handlers answer, and how they end.

The queue is a folder. A message is accepted when the task that published it has succeeded.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

import gevent
import pytest
from gevent.subprocess import STDOUT, Popen

pytest.importorskip("celery")

from guns import PATIENCE, TESTS
from witness import Witness, roll_call

from gnats.testing import ChaosProxy, NatsServer, wait_until

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(120)]

POOLS = pytest.mark.parametrize("pool", ["gevent", "prefork"])


@pytest.fixture
def witness(nats_server: NatsServer) -> Iterator[Witness]:
    one = Witness(nats_server.url)
    yield one
    one.conn.close()


@pytest.fixture
def tasks(
    tmp_path: Path, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """The module celery_tasks, to put tasks into the queue of this test."""
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TEST_CELERY_FOLDER", str(tmp_path))
    monkeypatch.setenv("TEST_NATS_URL", nats_server.url)
    for name in ("celery_tasks", "web_app"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import celery_tasks

    yield celery_tasks
    celery_tasks.app.close()


class Worker:
    """``celery worker`` as a child process; ``log`` is all that it has written."""

    def __init__(self, folder: Path, nats_url: str, *arguments: str, name: str = "one") -> None:
        self._log = folder / f"log-{name}"
        command = [
            *(sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "-l", "INFO"),
            *("-n", f"{name}@test", "--without-gossip", "--without-mingle", *arguments),
        ]
        with open(self._log, "wb") as output:
            self.process = Popen(
                command,
                stdout=output,
                stderr=STDOUT,
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(TESTS),
                    "TEST_NATS_URL": nats_url,
                    "TEST_CELERY_FOLDER": str(folder),
                },
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def await_ready(self) -> None:
        wait_until(lambda: " ready." in self.log, PATIENCE, lambda: self.log)

    def terminate(self) -> None:
        """A warm shutdown: tasks that have begun are finished."""
        os.kill(self.process.pid, signal.SIGTERM)

    def await_end(self, timeout: float = PATIENCE) -> None:
        wait_until(lambda: self.process.poll() is not None, timeout, lambda: self.log)
        assert self.process.returncode == 0, self.log

    def assert_clean(self) -> None:
        for word in ("Traceback", "Signal handler", "CRITICAL", "ERROR"):
            assert word not in self.log, self.log

    def end(self) -> None:
        """Whatever state it is in: gone, and its children with it."""
        if self.process.poll() is None:
            self.terminate()
            with gevent.Timeout(PATIENCE, False):
                self.process.wait()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path, nats_server: NatsServer, tasks: ModuleType) -> Iterator[Start]:
    """Start a worker, and wait until it is ready."""
    started: list[Worker] = []

    def one(pool: str, concurrency: int = 2, url: str = "", name: str = "one") -> Worker:
        arguments = ["-P", pool, "-c", str(concurrency)]
        started.append(Worker(tmp_path, url or nats_server.url, *arguments, name=name))
        started[-1].await_ready()
        return started[-1]

    yield one
    for worker in started:
        worker.end()


class Flow:
    """Tasks put into the queue one after the other, numbered, until ``stop``."""

    def __init__(self, tasks: ModuleType, what: str, first: int = 0, pause: float = 0.01) -> None:
        self._tasks = tasks
        self._what = what
        self._pause = pause
        self._first = self._next = first
        self._results: dict[int, Any] = {}
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            self._next += 1
            self._results[self._next] = self._tasks.do.delay(self._what, self._next)
            gevent.sleep(self._pause)

    @property
    def accepted(self) -> set[int]:
        """The numbers of the tasks that have succeeded."""
        return {n for n, result in self._results.items() if result.state == "SUCCESS"}

    @property
    def failed(self) -> set[int]:
        return {n for n, result in self._results.items() if result.state == "FAILURE"}

    def await_accepted(self, more: int) -> None:
        wanted = len(self.accepted) + more
        wait_until(lambda: len(self.accepted) >= wanted, PATIENCE, lambda: f"{wanted} tasks")

    def stop(self) -> None:
        self._greenlet.kill()


def result(tasks: ModuleType, what: str, number: int) -> int:
    """Of one task, once it has succeeded."""
    pending = tasks.do.delay(what, number)
    wait_until(lambda: pending.state == "SUCCESS", PATIENCE, lambda: str(pending.state))
    return int(pending.result)


# -- life ----------------------------------------------------------------------------------


def test_every_gevent_worker_publishes_subscribes_and_requests(
    tasks: ModuleType, start: Start, witness: Witness
) -> None:
    workers = [start("gevent", 20, name=name) for name in ("one", "two")]
    pids = {worker.process.pid for worker in workers}
    assert roll_call(witness.conn, 2) == pids  # before any task
    for what, number in (("/publish", 0), ("/flush", 1000), ("/ask", 2000)):
        reached: set[int] = set()
        while reached != pids:
            number += 1
            reached.add(result(tasks, what, number))
            if what != "/ask":
                witness.await_all({number})
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.await_end()
        worker.assert_clean()


def test_every_child_of_prefork_publishes_and_requests(
    tasks: ModuleType, start: Start, nats_server: NatsServer, witness: Witness
) -> None:
    witness.conn.subscribe("who", cb=lambda msg: msg.respond(b"here"))
    witness.conn.flush()
    worker = start("prefork")
    assert "handlers are not started under -P prefork" in worker.log
    for what, number in (("/publish", 0), ("/ask", 2000)):
        reached: set[int] = set()
        while len(reached) < 2:
            number += 1
            reached.add(result(tasks, what, number))
            if what != "/ask":
                witness.await_all({number})
        assert worker.process.pid not in reached
    connections = nats_server.connz()["connections"]
    assert len(connections) == 3  # the witness, and each child's own
    assert sum(one["subscriptions"] for one in connections) == 4 + 2  # an inbox each, no handlers
    worker.terminate()
    worker.await_end()
    worker.assert_clean()


@POOLS
def test_the_server_is_killed_and_comes_back(
    tasks: ModuleType,
    start: Start,
    nats_server: NatsServer,
    chaos_proxy: Callable[..., ChaosProxy],
    witness: Witness,
    pool: str,
) -> None:
    # Through a proxy, so that the witness is back before the workers.
    proxy = chaos_proxy(nats_server.url)
    worker = start(pool, 4, proxy.url)
    result(tasks, "/publish", 1_000_000)
    proxy.refuse()
    nats_server.kill()
    wait_until(lambda: not witness.conn.is_connected, PATIENCE)
    gevent.sleep(0.3)  # for the worker to see it, too
    flow = Flow(tasks, "/publish", pause=0.1 if pool == "prefork" else 0.01)
    flow.await_accepted(8)
    nats_server.restart()
    wait_until(lambda: witness.conn.is_connected, PATIENCE)
    witness.conn.flush()
    proxy.listen()
    flow.await_accepted(20)
    flow.stop()
    worker.terminate()
    worker.await_end()
    assert not flow.failed, worker.log
    witness.await_all(flow.accepted)
    worker.assert_clean()


def test_a_child_of_prefork_whose_link_ended_between_two_tasks(
    tasks: ModuleType, start: Start, nats_server: NatsServer, witness: Witness
) -> None:
    worker = start("prefork", 1)
    for number in range(1, 4):
        result(tasks, "/publish", number)
        witness.await_all({number})  # though no other task has come
        nats_server.restart()
        links = number + 1
        wait_until(lambda wanted=links: witness.conn.stats.connects == wanted, PATIENCE)
        wait_until(lambda: witness.conn.is_connected, PATIENCE)
        witness.conn.flush()
    result(tasks, "/publish", 4)
    witness.await_all({4})
    worker.terminate()
    worker.await_end()
    worker.assert_clean()


# -- the end of a worker -------------------------------------------------------------------


@POOLS
def test_nothing_accepted_is_lost_in_a_warm_shutdown(
    tasks: ModuleType, start: Start, witness: Witness, pool: str
) -> None:
    worker = start(pool, 10 if pool == "gevent" else 2)
    flows = [Flow(tasks, "/publish"), Flow(tasks, "/late", 1_000_000, pause=0.5)]
    for number in range(20):
        witness.conn.publish(f"jobs.{number}")
    for flow in flows:
        flow.await_accepted(2)
    flows[0].await_accepted(20)
    worker.terminate()
    worker.await_end()
    for flow in flows:
        flow.stop()
        assert not flow.failed, worker.log
        witness.await_all(flow.accepted)
    assert bool(witness.came["started"]) == (pool == "gevent")
    witness.await_all(set(witness.came["started"]), "done")
    worker.assert_clean()


@POOLS
def test_it_ends_within_its_bound_without_a_server(
    tasks: ModuleType, start: Start, nats_server: NatsServer, pool: str
) -> None:
    worker = start(pool, 2)
    result(tasks, "/publish", 1)
    nats_server.kill()
    result(tasks, "/publish", 2)
    began = monotonic()
    worker.terminate()
    worker.await_end()
    assert monotonic() - began < 5.0 + 2.0 + 15.0  # stop_timeout, handlers, Celery by itself
    assert "gnats: stopped: drain did not end" in worker.log
    worker.assert_clean()


def test_other_pools_are_refused_in_the_log(tasks: ModuleType, start: Start) -> None:
    assert "use -P gevent" in start("threads").log
