"""The same application on nats-py, in a process of its own. It talks JSON lines: commands come on
stdin, events go to stdout. Run by ``natspy.py``; its argument is a JSON object.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from typing import Any

import nats
from numbering import numbered

NAME = "server.test"
_time, _getaddrinfo = time.time, socket.getaddrinfo
answers: list[list[str] | None] = [["127.0.0.1"]]  # None: it fails; an empty list: it hangs


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def resolve(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
    if host not in (NAME, NAME.encode()):
        return _getaddrinfo(host, port, *rest, **named)
    while answers[0] == []:
        time.sleep(0.01)
    if answers[0] is None:
        raise socket.gaierror(socket.EAI_AGAIN, "name resolution fails for now")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in answers[0]]


class App:
    def __init__(self, given: dict[str, Any]) -> None:
        self.subject = given["subject"]
        self.accepted = 0
        self.refused = 0
        self.flooding = False
        self.options = given["options"]
        self.client = nats.NATS()

    async def run(self, commands: asyncio.Queue[dict[str, Any]]) -> None:
        await self.client.connect(
            **self.options,
            disconnected_cb=self.tells("disconnected"),
            reconnected_cb=self.tells("reconnected"),
            closed_cb=self.tells("closed"),
            error_cb=self.on_error,
        )
        say(event="connected")
        flood = asyncio.ensure_future(self.flood())
        while (command := await commands.get())["do"] != "stop":
            self.obey(command)
        self.flooding = False
        await flood
        say(event="stopped", accepted=self.accepted, refused=self.refused)
        say(event="flushed", outcome=await self.flush())
        say(event="left", outcome=await self.close())

    def obey(self, command: dict[str, Any]) -> None:
        if command["do"] == "clock":
            by = command["by"]
            time.time = (lambda: _time() + by) if by else _time
        elif command["do"] == "resolve":
            answers[0] = command["answers"]
        say(event="obeyed")

    async def flood(self) -> None:
        self.flooding = True
        while self.flooding:
            for _ in range(20):
                try:
                    await self.client.publish(self.subject, numbered(self.accepted))
                except Exception:
                    self.refused += 1
                    break
                self.accepted += 1
                if self.accepted % 100 == 0:
                    say(event="published", count=self.accepted)
            await asyncio.sleep(0.002)

    async def flush(self) -> str:
        for _ in range(5):
            try:
                await asyncio.wait_for(self.client.flush(1), 3)
            except Exception as exc:
                outcome = type(exc).__name__
                await asyncio.sleep(0.05)
            else:
                return "ok"
        return outcome

    async def close(self) -> str:
        try:
            await asyncio.wait_for(self.client.close(), 5)
        except Exception as exc:
            return type(exc).__name__
        return "ok"

    def tells(self, what: str) -> Any:
        async def callback() -> None:
            say(event=what)

        return callback

    async def on_error(self, error: Exception) -> None:
        say(event="error", kind=type(error).__name__, text=str(error)[:200])


def listen(loop: asyncio.AbstractEventLoop, commands: asyncio.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(commands.put_nowait, json.loads(line))


async def main() -> None:
    commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    threading.Thread(target=listen, args=(loop, commands), daemon=True).start()
    await App(json.loads(sys.argv[1])).run(commands)


if __name__ == "__main__":
    socket.getaddrinfo = resolve
    asyncio.run(main())
