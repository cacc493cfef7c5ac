"""Who counts what workers publish, and asks which of them live: a subscriber of the test's own.

It is in the process of the test, never in that of a worker.
"""

from __future__ import annotations

from guns import PATIENCE

import gnats
from gnats.testing import wait_until


class Witness:
    """Counts what has come, by itself: subject to numbers."""

    def __init__(self, url: str) -> None:
        self.conn = gnats.connect(url, max_reconnect=-1, reconnect_wait=0.05, reconnect_jitter=0.0)
        self.came: dict[str, list[int]] = {"seen": [], "started": [], "done": []}
        for word in self.came:
            self.conn.subscribe(f"{word}.*", cb=self._note)
        self.conn.flush()

    def _note(self, msg: gnats.Msg) -> None:
        word, number = msg.subject.split(".")
        self.came[word].append(int(number))

    def has(self, numbers: set[int], word: str = "seen") -> bool:
        return numbers <= set(self.came[word])

    def await_all(self, numbers: set[int], word: str = "seen") -> None:
        wait_until(
            lambda: self.has(numbers, word),
            PATIENCE,
            lambda: f"{word}: {len(numbers - set(self.came[word]))} lost of {len(numbers)}",
        )


def roll_call(conn: gnats.Connection, count: int) -> set[int]:
    """The pids of the processes whose handlers answer, once they are *count*."""
    pids: set[int] = set()

    def all_answer() -> bool:
        replies = conn.request_many("roll.call", timeout=2.0, stall=0.3, max_msgs=count + 1)
        try:
            pids.clear()
            pids.update(int(msg.data) for msg in replies)
        except gnats.errors.NoRespondersError:
            return False
        return len(pids) >= count

    wait_until(all_answer, PATIENCE, lambda: f"{count} processes to answer, not {pids}")
    return pids
