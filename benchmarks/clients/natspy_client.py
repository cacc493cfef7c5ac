"""nats-py, used as its documentation says: awaited publishes, an async callback, request()."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

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

_PATIENCE = 60  # seconds for any one wait


async def publish(client: Client, task: Job) -> dict[str, Any]:
    payload, headers = task.payload, dict([HEADER]) if task.headers else None

    async def send(count: int) -> None:
        if headers is None:
            for _ in range(count):
                await client.publish(task.subject, payload)
        else:
            for _ in range(count):
                await client.publish(task.subject, payload, headers=headers)

    await send(task.warm_up)
    await client.flush()
    watch = Stopwatch()
    await send(task.count)
    await client.flush(_PATIENCE)
    return watch.result(task.count)


async def receive(client: Client, task: Job) -> dict[str, Any]:
    on_message, finished = counter(task)
    for subject in task.subscribed():
        await client.subscribe(subject, cb=on_message)
    await client.flush(_PATIENCE)
    say(ready=True)
    return await asyncio.wait_for(finished, _PATIENCE)


def counter(
    task: Job,
) -> tuple[Callable[[Msg], Awaitable[None]], asyncio.Future[dict[str, Any]]]:
    """A callback, and the result once it has been called for the last message."""
    received = 0
    finished: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    watch = Stopwatch()
    name = HEADER[0]

    async def on_message(_: Msg) -> None:
        nonlocal received
        if not received:
            watch.start()
        received += 1
        if received == task.count:
            finished.set_result(watch.result(task.count - 1))

    async def on_headers(msg: Msg) -> None:
        assert msg.headers is not None
        _ = msg.headers[name]
        await on_message(msg)

    return on_headers if task.headers else on_message, finished


async def both(client: Client, task: Job) -> dict[str, Any]:
    on_message, finished = counter(task)
    await client.subscribe(task.subject, cb=on_message)
    await client.flush()
    watch, payload = Stopwatch(), task.payload
    for _ in range(task.count):
        await client.publish(task.subject, payload)
    await asyncio.wait_for(finished, _PATIENCE)
    return watch.result(task.count)


async def serial(client: Client, task: Job) -> dict[str, Any]:
    clock, times, payload = time.perf_counter, [], task.payload
    for _ in range(task.warm_up):
        await client.request(task.subject, payload, timeout=REQUEST_TIMEOUT)
    watch = Stopwatch()
    for _ in range(task.count):
        began = clock()
        await client.request(task.subject, payload, timeout=REQUEST_TIMEOUT)
        times.append(clock() - began)
    return {**watch.result(task.count), **latencies(times)}


async def concurrent(client: Client, task: Job) -> dict[str, Any]:
    payload, tasks = task.payload, task.requesters

    async def requester(requests: int) -> None:
        for _ in range(requests):
            await client.request(task.subject, payload, timeout=REQUEST_TIMEOUT)

    async def all_at_once(each: int) -> None:
        await asyncio.gather(*(requester(each) for _ in range(tasks)))

    each = max(1, task.count // tasks)
    await all_at_once(max(1, task.warm_up // tasks))
    watch = Stopwatch()
    await all_at_once(each)
    return watch.result(each * tasks)


async def memory(client: Client, task: Job) -> dict[str, Any]:
    """RSS per idle subscription; then, for as many more, what Python itself allocated."""
    await subscribe_many(client, task, "warm", 1)
    before = resident()
    await subscribe_many(client, task, "rss", task.count)
    grown = resident() - before
    tracemalloc.start()
    first = tracemalloc.get_traced_memory()[0]
    await subscribe_many(client, task, "traced", task.count)
    traced = tracemalloc.get_traced_memory()[0] - first
    return {"count": task.count, "rss": grown / task.count, "traced": traced / task.count}


async def outage(client: Client, task: Job, full: bool) -> dict[str, Any]:
    """An outage: subscriptions to restore, messages kept meanwhile, and when all is well again."""
    await subscribe_many(client, task, "returning", task.count)
    say(ready=True)
    while not client.is_reconnecting:
        await asyncio.sleep(0.0005)
    kept = 0
    try:
        while kept == 0 or full:
            await client.publish(task.subject, task.payload)
            kept += 1
    except nats.errors.OutboundBufferLimitError:
        pass
    say(kept=kept)
    while not returned:
        await asyncio.sleep(0.0005)
    await client.flush(_PATIENCE)
    return {"back": returned[0], "confirmed": time.monotonic(), "count": kept}


async def connect(_client: Client, task: Job) -> dict[str, Any]:
    """How long it takes until a new connection can be used, one after the other."""
    times = []
    for _ in range(task.count):
        began = time.perf_counter()
        one = await nats.connect(task.url)
        times.append(time.perf_counter() - began)
        await one.close()
    return {"count": task.count, **latencies(times)}


async def subscribe_many(client: Client, task: Job, group: str, count: int) -> None:
    for number in range(count):
        await client.subscribe(f"{task.subject}.{group}.{number}", cb=ignore)
    await client.flush(_PATIENCE)
    gc.collect()


async def ignore(_: Msg) -> None:
    """Never called: the subscriptions are idle."""


WORKS: dict[str, Callable[[Client, Job], Awaitable[dict[str, Any]]]] = {
    "publish": publish,
    "receive": receive,
    "both": both,
    "serial": serial,
    "concurrent": concurrent,
    "memory": memory,
    "connect": connect,
    "outage": lambda client, task: outage(client, task, full=False),
    "outage-full": lambda client, task: outage(client, task, full=True),
}

#: When reconnected_cb was called.
returned: list[float] = []


async def on_reconnected() -> None:
    returned.append(time.monotonic())


async def on_error(_: Exception) -> None:
    """The losses are meant."""


#: For the outages: as gnats does then.
RECONNECT: dict[str, Any] = {
    "max_reconnect_attempts": -1,
    "reconnect_time_wait": RECONNECT_WAIT,
    "pending_size": 8 * 1024 * 1024,  # what gnats keeps by default
    "reconnected_cb": on_reconnected,
    "error_cb": on_error,
}


async def main() -> None:
    task = job()
    options: dict[str, Any] = {}
    if task.url.startswith("tls:"):
        options["tls"] = ssl.create_default_context(cafile=os.environ[CA_FILE])
    if task.work.startswith("outage"):
        options.update(RECONNECT)
    client = await nats.connect(task.url, **options)
    say(**await WORKS[task.work](client, task))
    # Not drain(): it waits for the 20,000 tasks of the memory case one by one.
    await client.close()


if __name__ == "__main__":
    if os.environ.get("GNATS_BENCH_UVLOOP"):
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
