"""Servers to test against: real ones that can be hurt, a fake one that can lie, a bad network.

`NatsServer` and `NatsCluster` run the real nats-server (``pip install 'gnats[server]'``);
`FakeServer` does what a real one will not do; `ChaosProxy` hurts the links between a client and
any of them. Everything waits cooperatively, within bounds, and works monkey-patched and
unpatched. For pytest: ``pytest_plugins = ["gnats.testing.fixtures"]``.
"""

from __future__ import annotations

from gnats.testing.clusters import NatsCluster
from gnats.testing.fake import (
    ClientGone,
    FakeClient,
    FakeServer,
    Frame,
    FrameError,
    FrameParser,
    hold,
    message_frame,
    serve,
)
from gnats.testing.ports import ReservedPort, free_port
from gnats.testing.proxy import ChaosLink, ChaosProxy
from gnats.testing.servers import (
    NatsServer,
    ServerError,
    ServerReloadError,
    ServerStartError,
    find_binary,
)
from gnats.testing.waiting import wait_until

__all__ = [
    "ChaosLink",
    "ChaosProxy",
    "ClientGone",
    "FakeClient",
    "FakeServer",
    "Frame",
    "FrameError",
    "FrameParser",
    "NatsCluster",
    "NatsServer",
    "ReservedPort",
    "ServerError",
    "ServerReloadError",
    "ServerStartError",
    "find_binary",
    "free_port",
    "hold",
    "message_frame",
    "serve",
    "wait_until",
]
