"""gnats, used as its README says."""

from __future__ import annotations

import gc
import logging
import os
import time
import tracemalloc
from typing import Any

import gevent
from gevent.event import AsyncResult, Event

import gnats
from benchmarks.clients.contract import (
    CONCURRENT,
    RECONNECT_WAIT,
    REQUEST_TIMEOUT,
    Job,
    Stopwatch,
    job,
    latencies,
    resident,
    say,
)
from benchmarks.wire import CA_FILE, PAYLOAD

_PATIENCE = 60.0  # seconds for any one wait
RECONNECT: dict[str, Any] = {
    "max_reconnect": -1,
    "reconnect_wait": RECONNECT_WAIT,
    "reconnect_jitter": 0.0,
}


def publish(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    for _ in range(task.warm_up):
        conn.publish(task.subject, PAYLOAD)
    conn.flush()
    watch = Stopwatch()
    for _ in range(task.count):
        conn.publish(task.subject, PAYLOAD)
    conn.flush(_PATIENCE)
    return watch.result(task.count)


def receive(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    received = 0
    finished: AsyncResult[dict[str, float]] = AsyncResult()
    watch = Stopwatch()

    def on_message(_: gnats.Msg) -> None:
        nonlocal received
        if not received:
            watch.start()
        received += 1
        if received == task.count:
            finished.set(watch.result(task.count - 1))

    conn.subscribe(task.subject, cb=on_message)
    conn.flush()
    say(ready=True)
    return finished.get(timeout=_PATIENCE)


def serial(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    clock, times = time.perf_counter, []
    for _ in range(task.warm_up):
        conn.request(task.subject, PAYLOAD, timeout=REQUEST_TIMEOUT)
    watch = Stopwatch()
    for _ in range(task.count):
        began = clock()
        conn.request(task.subject, PAYLOAD, timeout=REQUEST_TIMEOUT)
        times.append(clock() - began)
    return {**watch.result(task.count), **latencies(times)}


def concurrent(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    def requester(requests: int) -> None:
        for _ in range(requests):
            conn.request(task.subject, PAYLOAD, timeout=REQUEST_TIMEOUT)

    def all_at_once(each: int) -> None:
        gevent.joinall([gevent.spawn(requester, each) for _ in range(CONCURRENT)], raise_error=True)

    each = max(1, task.count // CONCURRENT)
    all_at_once(max(1, task.warm_up // CONCURRENT))
    watch = Stopwatch()
    all_at_once(each)
    return watch.result(each * CONCURRENT)


def memory(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    """RSS per idle subscription; then, for as many more, what Python itself allocated."""
    subscribe_many(conn, task, "warm", 1)
    before = resident()
    subscribe_many(conn, task, "rss", task.count)
    grown = resident() - before
    tracemalloc.start()
    first = tracemalloc.get_traced_memory()[0]
    subscribe_many(conn, task, "traced", task.count)
    traced = tracemalloc.get_traced_memory()[0] - first
    return {"count": task.count, "rss": grown / task.count, "traced": traced / task.count}


def restore(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    """From the order to reconnect until the server has processed every SUB again."""
    answered = Event()
    subscribe_many(conn, task, "restored", task.count)
    conn.subscribe(f"{task.subject}.last", cb=lambda _: answered.set())
    conn.flush()
    before = conn.stats.reconnects
    watch = Stopwatch()
    conn.force_reconnect()
    while conn.stats.reconnects == before or not conn.is_connected:
        gevent.sleep(0.0005)
    conn.flush(_PATIENCE)
    result = watch.result(task.count)
    conn.publish(f"{task.subject}.last")
    if not answered.wait(_PATIENCE):
        raise TimeoutError("the last subscription was not restored")
    return result


def outage(conn: gnats.Connection, task: Job, full: bool) -> dict[str, Any]:
    """An outage: subscriptions to restore, messages kept meanwhile, and when all is well again."""
    subscribe_many(conn, task, "returning", task.count)
    say(ready=True)
    conn.wait_for_status("reconnecting", _PATIENCE)
    reconnects = conn.stats.reconnects
    kept = 0
    try:
        while kept == 0 or full:
            conn.publish(task.subject, PAYLOAD)
            kept += 1
    except gnats.errors.OutboundBufferLimitError:
        pass
    say(kept=kept)
    while conn.stats.reconnects == reconnects:
        gevent.sleep(0.0005)
    conn.flush(_PATIENCE)
    confirmed = time.monotonic()
    return {"back": RETURNED.get(timeout=_PATIENCE), "confirmed": confirmed, "count": kept}


def subscribe_many(conn: gnats.Connection, task: Job, group: str, count: int) -> None:
    for number in range(count):
        conn.subscribe(f"{task.subject}.{group}.{number}", cb=ignore)
    conn.flush(_PATIENCE)
    gc.collect()


def ignore(_: gnats.Msg) -> None:
    """Never called: the subscriptions are idle."""


CASES = {
    "publish": publish,
    "receive": receive,
    "serial": serial,
    "concurrent": concurrent,
    "memory": memory,
    "kept": publish,
    "publish-tls": publish,
    "receive-tls": receive,
    "publish-ws": publish,
    "receive-ws": receive,
    "restore": restore,
    "return-1": lambda conn, task: outage(conn, task, full=False),
    "return-1000": lambda conn, task: outage(conn, task, full=False),
    "return-20000": lambda conn, task: outage(conn, task, full=False),
    "return-full": lambda conn, task: outage(conn, task, full=True),
}

#: When reconnected_cb was called.
RETURNED: AsyncResult[float] = AsyncResult()


def main(**options: Any) -> None:
    task = job()
    logging.getLogger("gnats").setLevel(logging.ERROR)  # the losses are meant
    options["reconnected_cb"] = lambda _: RETURNED.set(time.monotonic())
    if task.url.startswith("tls:"):
        options["tls"] = gnats.TLSOptions(ca=os.environ[CA_FILE])
    with gnats.connect(task.url, **RECONNECT, **options) as conn:
        say(**CASES[task.case](conn, task))


if __name__ == "__main__":
    main()
