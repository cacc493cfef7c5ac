"""nats-core, the newer asyncio client, used as its README says: subscriptions are iterated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from nats.client import Client, connect

from benchmarks.clients.contract import REQUEST_TIMEOUT, Job, Stopwatch, job, latencies, say

_PATIENCE = 60  # seconds for any one wait
# What gnats and nats-py let wait by default. Its own default, 65,536, drops a part of the flood.
_PENDING = 512 * 1024


async def publish(client: Client, task: Job) -> dict[str, Any]:
    payload = task.payload
    for _ in range(task.warm_up):
        await client.publish(task.subject, payload)
    await client.flush()
    watch = Stopwatch()
    for _ in range(task.count):
        await client.publish(task.subject, payload)
    await client.flush()
    return watch.result(task.count)


async def receive(client: Client, task: Job) -> dict[str, Any]:
    watch, received = Stopwatch(), 0
    async with await client.subscribe(task.subject, max_pending_messages=_PENDING) as messages:
        await client.flush()
        say(ready=True)
        async for _ in messages:
            if not received:
                watch.start()
            received += 1
            if received == task.count:
                return watch.result(task.count - 1)
    raise RuntimeError("the subscription ended")


async def both(client: Client, task: Job) -> dict[str, Any]:
    async def send() -> None:
        for _ in range(task.count):
            await client.publish(task.subject, payload)

    payload, received = task.payload, 0
    async with await client.subscribe(task.subject, max_pending_messages=_PENDING) as messages:
        await client.flush()
        watch = Stopwatch()
        sending = asyncio.ensure_future(send())
        async for _ in messages:
            received += 1
            if received == task.count:
                await sending
                return watch.result(task.count)
    raise RuntimeError("the subscription ended")


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


async def connecting(_client: Client, task: Job) -> dict[str, Any]:
    """How long it takes until a new connection can be used, one after the other."""
    times = []
    for _ in range(task.count):
        began = time.perf_counter()
        one = await connect(task.url)
        times.append(time.perf_counter() - began)
        await one.close()
    return {"count": task.count, **latencies(times)}


WORKS: dict[str, Callable[[Client, Job], Awaitable[dict[str, Any]]]] = {
    "publish": publish,
    "receive": receive,
    "both": both,
    "serial": serial,
    "concurrent": concurrent,
    "connect": connecting,
}


async def main() -> None:
    task = job()
    client = await connect(task.url)
    say(**await asyncio.wait_for(WORKS[task.work](client, task), _PATIENCE))
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
