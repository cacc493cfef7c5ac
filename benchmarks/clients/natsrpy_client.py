"""natsrpy, asyncio over Rust, used as its type stubs and its README say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from natsrpy import Nats

from benchmarks.clients.contract import REQUEST_TIMEOUT, Job, Stopwatch, job, latencies, say

_PATIENCE = 60  # seconds for any one wait


async def publish(client: Nats, task: Job) -> dict[str, Any]:
    payload = task.payload
    for _ in range(task.warm_up):
        await client.publish(task.subject, payload)
    await client.flush()
    watch = Stopwatch()
    for _ in range(task.count):
        await client.publish(task.subject, payload)
    await client.flush()
    return watch.result(task.count)


async def receive(client: Nats, task: Job) -> dict[str, Any]:
    watch, received = Stopwatch(), 0
    async with client.subscribe(task.subject) as messages:
        await client.flush()
        say(ready=True)
        async for _ in messages:
            if not received:
                watch.start()
            received += 1
            if received == task.count:
                return watch.result(task.count - 1)
    raise RuntimeError("the subscription ended")


async def both(client: Nats, task: Job) -> dict[str, Any]:
    async def send() -> None:
        for _ in range(task.count):
            await client.publish(task.subject, payload)

    payload, received = task.payload, 0
    async with client.subscribe(task.subject) as messages:
        await client.flush()
        watch = Stopwatch()
        sending = asyncio.ensure_future(send())
        async for _ in messages:
            received += 1
            if received == task.count:
                await sending
                return watch.result(task.count)
    raise RuntimeError("the subscription ended")


async def serial(client: Nats, task: Job) -> dict[str, Any]:
    clock, times, payload = time.perf_counter, [], task.payload
    for _ in range(task.warm_up):
        await client.request(task.subject, payload, timeout=REQUEST_TIMEOUT)
    watch = Stopwatch()
    for _ in range(task.count):
        began = clock()
        await client.request(task.subject, payload, timeout=REQUEST_TIMEOUT)
        times.append(clock() - began)
    return {**watch.result(task.count), **latencies(times)}


async def concurrent(client: Nats, task: Job) -> dict[str, Any]:
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


async def connect(_client: Nats, task: Job) -> dict[str, Any]:
    times = []
    for _ in range(task.count):
        began = time.perf_counter()
        one = Nats([task.url])
        await one.startup()
        times.append(time.perf_counter() - began)
        await one.shutdown()
    return {"count": task.count, **latencies(times)}


WORKS: dict[str, Callable[[Nats, Job], Awaitable[dict[str, Any]]]] = {
    "publish": publish,
    "receive": receive,
    "both": both,
    "serial": serial,
    "concurrent": concurrent,
    "connect": connect,
}


async def main() -> None:
    task = job()
    client = Nats([task.url])
    await client.startup()
    say(**await asyncio.wait_for(WORKS[task.work](client, task), _PATIENCE))
    await client.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
