"""nats-py, used as its documentation says: awaited publishes, an async callback, request()."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
import time
import tracemalloc
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

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

_PATIENCE = 60  # seconds for any one wait


async def publish(client: Client, task: Job) -> dict[str, Any]:
    for _ in range(task.warm_up):
        await client.publish(task.subject, PAYLOAD)
    await client.flush()
    watch = Stopwatch()
    for _ in range(task.count):
        await client.publish(task.subject, PAYLOAD)
    await client.flush(_PATIENCE)
    return watch.result(task.count)


async def receive(client: Client, task: Job) -> dict[str, Any]:
    received = 0
    finished: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    watch = Stopwatch()

    async def on_message(_: Msg) -> None:
        nonlocal received
        if not received:
            watch.start()
        received += 1
        if received == task.count:
            finished.set_result(watch.result(task.count - 1))

    await client.subscribe(task.subject, cb=on_message)
    await client.flush()
    say(ready=True)
    return await asyncio.wait_for(finished, _PATIENCE)


async def serial(client: Client, task: Job) -> dict[str, Any]:
    clock, times = time.perf_counter, []
    for _ in range(task.warm_up):
        await client.request(task.subject, PAYLOAD, timeout=REQUEST_TIMEOUT)
    watch = Stopwatch()
    for _ in range(task.count):
        began = clock()
        await client.request(task.subject, PAYLOAD, timeout=REQUEST_TIMEOUT)
        times.append(clock() - began)
    return {**watch.result(task.count), **latencies(times)}


async def concurrent(client: Client, task: Job) -> dict[str, Any]:
    async def requester(requests: int) -> None:
        for _ in range(requests):
            await client.request(task.subject, PAYLOAD, timeout=REQUEST_TIMEOUT)

    async def all_at_once(each: int) -> None:
        await asyncio.gather(*(requester(each) for _ in range(CONCURRENT)))

    each = max(1, task.count // CONCURRENT)
    await all_at_once(max(1, task.warm_up // CONCURRENT))
    watch = Stopwatch()
    await all_at_once(each)
    return watch.result(each * CONCURRENT)


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
            await client.publish(task.subject, PAYLOAD)
            kept += 1
    except nats.errors.OutboundBufferLimitError:
        pass
    say(kept=kept)
    while not returned:
        await asyncio.sleep(0.0005)
    await client.flush(_PATIENCE)
    return {"back": returned[0], "confirmed": time.monotonic(), "count": kept}


async def subscribe_many(client: Client, task: Job, group: str, count: int) -> None:
    for number in range(count):
        await client.subscribe(f"{task.subject}.{group}.{number}", cb=ignore)
    await client.flush(_PATIENCE)
    gc.collect()


async def ignore(_: Msg) -> None:
    """Never called: the subscriptions are idle."""


CASES = {
    "publish": publish,
    "receive": receive,
    "serial": serial,
    "concurrent": concurrent,
    "memory": memory,
    "publish-tls": publish,
    "receive-tls": receive,
    "publish-ws": publish,
    "receive-ws": receive,
    "return-1": lambda client, task: outage(client, task, full=False),
    "return-1000": lambda client, task: outage(client, task, full=False),
    "return-20000": lambda client, task: outage(client, task, full=False),
    "return-full": lambda client, task: outage(client, task, full=True),
}

#: When reconnected_cb was called.
returned: list[float] = []


async def on_reconnected() -> None:
    returned.append(time.monotonic())


async def on_error(_: Exception) -> None:
    """The losses are meant."""


async def main() -> None:
    task = job()
    secure: dict[str, Any] = {}
    if task.url.startswith("tls:"):
        secure["tls"] = ssl.create_default_context(cafile=os.environ[CA_FILE])
    client = await nats.connect(
        task.url,
        **secure,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT,
        pending_size=8 * 1024 * 1024,  # what gnats takes by default
        reconnected_cb=on_reconnected,
        error_cb=on_error,
    )
    say(**await CASES[task.case](client, task))
    # Not drain(): it waits for the 20,000 tasks of the memory case one by one.
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
