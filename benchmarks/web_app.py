"""The application of web.py: a page that has nothing to do with NATS, and a subscription."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from gnats.wsgi import Nats

received = [0]
nats = Nats(os.environ["BENCH_NATS_URL"])


@nats.subscription("bench.web")
def on_message(_msg: Any) -> None:
    received[0] += 1


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    counts = environ["PATH_INFO"] == "/received"
    body = b"%d" % received[0] if counts else b"hello"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
