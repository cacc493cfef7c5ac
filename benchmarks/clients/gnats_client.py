"""gnats, used as its README says."""

from __future__ import annotations

import gc
import logging
import os
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult, Event

import gnats
from benchmarks.clients.contract import (
    RECONNECT_WAIT,
    REQUEST_TIMEOUT,
    Job,
    Stopwatch,
    job,
    latencies,
    resident,
    say,
)
from benchmarks.wire import CA_FILE, HEADER

_PATIENCE = 60.0  # seconds for any one wait, but for a flood of many millions
RECONNECT: dict[str, Any] = {
    "max_reconnect": -1,
    "reconnect_wait": RECONNECT_WAIT,
    "reconnect_jitter": 0.0,
}


def publish(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    payload, headers = task.payload, dict([HEADER]) if task.headers else None

    def send(count: int) -> None:
        if headers is None:
            for _ in range(count):
                conn.publish(task.subject, payload)
        else:
            for _ in range(count):
                conn.publish(task.subject, payload, headers=headers)

    send(task.warm_up)
    conn.flush()
    watch = Stopwatch()
    send(task.count)
    conn.flush(_PATIENCE)
    return watch.result(task.count)


def receive(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    on_message, finished = counter(task)
    for subject in task.subscribed():
        conn.subscribe(subject, cb=on_message)
    conn.flush(_PATIENCE)
    say(ready=True)
    return finished.get(timeout=_PATIENCE + task.count / 50_000)


def counter(task: Job) -> tuple[Callable[[gnats.Msg], None], AsyncResult[dict[str, float]]]:
    """A callback, and the result once it has been called for the last message."""
    received = 0
    finished: AsyncResult[dict[str, float]] = AsyncResult()
    watch = Stopwatch()
    name = HEADER[0]

    def on_message(_: gnats.Msg) -> None:
        nonlocal received
        if not received:
            watch.start()
        received += 1
        if received == task.count:
            finished.set(watch.result(task.count - 1))

    def on_headers(msg: gnats.Msg) -> None:
        assert msg.headers is not None
        _ = msg.headers[name]
        on_message(msg)

    return on_headers if task.headers else on_message, finished


def both(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    on_message, finished = counter(task)
    conn.subscribe(task.subject, cb=on_message)
    conn.flush()
    watch, payload = Stopwatch(), task.payload
    for _ in range(task.count):
        conn.publish(task.subject, payload)
    finished.get(timeout=_PATIENCE)
    return watch.result(task.count)


def serial(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    clock, times, payload = time.perf_counter, [], task.payload
    for _ in range(task.warm_up):
        conn.request(task.subject, payload, timeout=REQUEST_TIMEOUT)
    watch = Stopwatch()
    for _ in range(task.count):
        began = clock()
        conn.request(task.subject, payload, timeout=REQUEST_TIMEOUT)
        times.append(clock() - began)
    return {**watch.result(task.count), **latencies(times)}


def concurrent(conn: gnats.Connection, task: Job) -> dict[str, Any]:
    payload, greenlets = task.payload, task.requesters

    def requester(requests: int) -> None:
        for _ in range(requests):
            conn.request(task.subject, payload, timeout=REQUEST_TIMEOUT)

    def all_at_once(each: int) -> None:
        gevent.joinall([gevent.spawn(requester, each) for _ in range(greenlets)], raise_error=True)

    each = max(1, task.count // greenlets)
    all_at_once(max(1, task.warm_up // greenlets))
    watch = Stopwatch()
    all_at_once(each)
    return watch.result(each * greenlets)


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
            conn.publish(task.subject, task.payload)
            kept += 1
    except gnats.errors.OutboundBufferLimitError:
        pass
    say(kept=kept)
    while conn.stats.reconnects == reconnects:
        gevent.sleep(0.0005)
    conn.flush(_PATIENCE)
    confirmed = time.monotonic()
    return {"back": RETURNED.get(timeout=_PATIENCE), "confirmed": confirmed, "count": kept}


def connect(_conn: gnats.Connection, task: Job) -> dict[str, Any]:
    """How long it takes until a new connection can be used, one after the other."""
    times = []
    for _ in range(task.count):
        began = time.perf_counter()
        with gnats.connect(task.url):
            times.append(time.perf_counter() - began)
    return {"count": task.count, **latencies(times)}


def subscribe_many(conn: gnats.Connection, task: Job, group: str, count: int) -> None:
    for number in range(count):
        conn.subscribe(f"{task.subject}.{group}.{number}", cb=ignore)
    conn.flush(_PATIENCE)
    gc.collect()


def ignore(_: gnats.Msg) -> None:
    """Never called: the subscriptions are idle."""


WORKS: dict[str, Callable[[gnats.Connection, Job], dict[str, Any]]] = {
    "publish": publish,
    "receive": receive,
    "both": both,
    "serial": serial,
    "concurrent": concurrent,
    "memory": memory,
    "connect": connect,
    "restore": restore,
    "outage": lambda conn, task: outage(conn, task, full=False),
    "outage-full": lambda conn, task: outage(conn, task, full=True),
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
        say(**WORKS[task.work](conn, task))


if __name__ == "__main__":
    main()
