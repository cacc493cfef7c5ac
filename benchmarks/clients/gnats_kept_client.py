"""gnats with at-least-once publishing."""

from __future__ import annotations

from benchmarks.clients.gnats_client import main

if __name__ == "__main__":
    main(replay_unconfirmed=True)
