"""nats-python (``pynats``), blocking and without threads, used as its README says."""

from __future__ import annotations

import time
from typing import Any

from pynats import NATSClient, NATSMessage

from benchmarks.clients.contract import Job, Stopwatch, job, latencies, say


def settle(client: NATSClient, subject: str) -> None:
    """Return once the server has processed all that was published. Its ``ping`` will not do: it
    fails where a PING of the server comes first."""
    sub = client.subscribe(f"{subject}.settled", callback=lambda _: None, max_messages=1)
    client.auto_unsubscribe(sub)
    client.publish(f"{subject}.settled")
    client.wait(count=1)


def publish(client: NATSClient, task: Job) -> dict[str, Any]:
    payload = task.payload
    for _ in range(task.warm_up):
        client.publish(task.subject, payload=payload)
    settle(client, task.subject)
    watch = Stopwatch()
    for _ in range(task.count):
        client.publish(task.subject, payload=payload)
    settle(client, task.subject)
    return watch.result(task.count)


def receive(client: NATSClient, task: Job) -> dict[str, Any]:
    watch, received = Stopwatch(), 0

    def on_message(_: NATSMessage) -> None:
        nonlocal received
        if not received:
            watch.start()
        received += 1

    client.subscribe(task.subject, callback=on_message)
    client.ping()
    say(ready=True)
    client.wait(count=task.count)
    return watch.result(task.count - 1)


def serial(client: NATSClient, task: Job) -> dict[str, Any]:
    clock, times, payload = time.perf_counter, [], task.payload
    for _ in range(task.warm_up):
        client.request(task.subject, payload=payload)
    watch = Stopwatch()
    for _ in range(task.count):
        began = clock()
        client.request(task.subject, payload=payload)
        times.append(clock() - began)
    return {**watch.result(task.count), **latencies(times)}


def connect(_client: NATSClient, task: Job) -> dict[str, Any]:
    times = []
    for _ in range(task.count):
        began = time.perf_counter()
        with NATSClient(task.url) as one:
            one.ping()
            times.append(time.perf_counter() - began)
    return {"count": task.count, **latencies(times)}


WORKS = {"publish": publish, "receive": receive, "serial": serial, "connect": connect}


def main() -> None:
    task = job()
    with NATSClient(task.url, socket_timeout=60) as client:
        say(**WORKS[task.work](client, task))


if __name__ == "__main__":
    main()
