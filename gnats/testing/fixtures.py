"""Pytest fixtures for suites of your own: ``pytest_plugins = ["gnats.testing.fixtures"]``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Callable

import pytest

from gnats.testing.clusters import NatsCluster
from gnats.testing.fake import FakeServer, Handler
from gnats.testing.proxy import ChaosProxy
from gnats.testing.servers import NatsServer

__all__ = ["chaos_proxy", "fake_server", "nats_cluster", "nats_server", "shared_nats_server"]


@pytest.fixture
def nats_server() -> Iterator[NatsServer]:
    """A running `NatsServer` for this test alone: kill it, pause it, restart it."""
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="session")
def shared_nats_server() -> Iterator[NatsServer]:
    """One running `NatsServer` for the whole session, for tests that do not hurt it."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def nats_cluster() -> Iterator[NatsCluster]:
    """A formed `NatsCluster` of three servers for this test alone."""
    with NatsCluster(3) as cluster:
        yield cluster


@pytest.fixture
def fake_server() -> Iterator[Callable[..., FakeServer]]:
    """A factory of listening `FakeServer`s: call it as the class; all are stopped afterwards.

    The test fails when a handler failed or a client sent a broken frame, unless strict=False.
    """
    with ExitStack() as servers:

        def make(handler: Handler | Sequence[Handler] | None = None, **options: Any) -> FakeServer:
            return servers.enter_context(FakeServer(handler, **options))

        yield make


@pytest.fixture
def chaos_proxy() -> Iterator[Callable[..., ChaosProxy]]:
    """A factory of listening `ChaosProxy`s: call it as the class; all are stopped afterwards.

    The test fails when an `on_link` callback failed.
    """
    with ExitStack() as proxies:

        def make(target: str, *args: Any, **options: Any) -> ChaosProxy:
            return proxies.enter_context(ChaosProxy(target, *args, **options))

        yield make
