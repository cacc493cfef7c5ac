"""What every test gets: a header that says what is really tested, seeded randomness, time-outs that
work under gevent, and a check that no greenlet of gnats outlives its test.

Here are no fixtures for servers: those are in gnats.testing.fixtures.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import os
import platform
import random
import secrets
import sys
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import gevent.hub
import gevent.monkey
import greenlet
import hypothesis
import pytest
from finish import finish

import gnats
from gnats.nuid import NUID
from gnats.testing import NatsServer

pytest_plugins = ["gnats.testing.fixtures"]

SEED = os.environ.get("GNATS_SEED") or secrets.token_hex(4)

LEAK_GRACE = 2.0  # seconds: close() joins its greenlets, what it cannot join ends soon after

hypothesis.settings.register_profile(
    "gnats",
    deadline=None,  # other greenlets and a loaded CI machine are in every measurement
    print_blob=True,
    derandomize=False,  # not even in CI: each run looks somewhere new, the blob brings it back
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("gnats")


# --- what is tested ------------------------------------------------------------------------------


def _loop() -> str:
    return f"{gevent.config.loop.__module__}.{gevent.config.loop.__name__}"


def _patched() -> bool:
    return gevent.monkey.is_module_patched("socket")


def pytest_report_header() -> list[str]:
    """Say what these results are about."""
    mode = "patched" if _patched() else "unpatched"
    return [
        f"gnats {gnats.__version__} from {Path(gnats.__file__).parent}; {mode}",
        f"{platform.python_implementation()} {platform.python_version()}; loop {_loop()}",
        f"gevent {gevent.__version__}, greenlet {greenlet.__version__}",
        f"seed {SEED}: repeat with GNATS_SEED={SEED}",
    ]


def _check_environment() -> None:
    """Refuse to run when this is not what the GNATS_TEST_* variables announce (see tox.ini)."""
    expected = os.environ.get

    def insist(condition: bool, what: str) -> None:
        if not condition:
            raise pytest.UsageError(f"the environment promises another thing than it is: {what}")

    patched = expected("GNATS_TEST_PATCHED")
    if patched:
        insist(_patched() == (patched == "1"), f"GNATS_TEST_PATCHED={patched}")
    loop = expected("GNATS_TEST_LOOP")
    if loop:
        insist(_loop().startswith(f"gevent.{loop}."), f"GNATS_TEST_LOOP={loop}, it is {_loop()}")
    version = expected("GNATS_TEST_GEVENT")
    if version:
        oldest = "24.10." if sys.version_info >= (3, 13) else "23.9."
        old = gevent.__version__.startswith(oldest)
        insist(
            old == (version == "oldest"), f"GNATS_TEST_GEVENT={version}, it is {gevent.__version__}"
        )
    compiled = expected("GNATS_TEST_COMPILED")
    if compiled:
        insist(gnats.compiled == (compiled == "1"), f"GNATS_TEST_COMPILED={compiled}")
    if expected("GNATS_TEST_INSTALLED"):
        inside = Path(sys.prefix).resolve() in Path(gnats.__file__).resolve().parents
        insist(inside, f"GNATS_TEST_INSTALLED, it is {gnats.__file__}")


# --- time-outs -----------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Check the environment; let a time-out through gevent; keep a stderr that is not captured."""
    _check_environment()
    # The alarm strikes whichever greenlet is running. Were its exception an ordinary error there,
    # only that greenlet would die, and the test could pass; a system error goes on to the main one.
    gevent.hub.Hub.SYSTEM_ERROR = (*gevent.hub.Hub.SYSTEM_ERROR, pytest.fail.Exception)
    config.stash[_stderr] = os.fdopen(os.dup(2), "w")


_stderr = pytest.StashKey[Any]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """End the process, with its stacks, when not even the alarm could end a test."""
    marker = item.get_closest_marker("timeout")
    arguments = [*marker.args, marker.kwargs.get("timeout")] if marker else []
    timeout = float((arguments and arguments[0]) or item.config.getini("timeout") or 0)
    if timeout:
        stderr = item.config.stash[_stderr]
        faulthandler.dump_traceback_later(3 * timeout + 30, exit=True, file=stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_collection_finish() -> None:
    """Ten thousand tests are a quarter of a million objects that every collection would visit."""
    gc.collect()
    gc.freeze()


def pytest_exception_interact(call: pytest.CallInfo[Any], report: object) -> None:
    """Show, with a time-out, where every greenlet was."""
    timed_out = call.excinfo is not None and "from pytest-timeout" in str(call.excinfo.value)
    if timed_out and isinstance(report, pytest.TestReport):
        report.sections.append(("greenlets", "".join(_greenlets())))


def _greenlets() -> Iterator[str]:
    # Not gevent.util.format_run_info(): it prints the locals of greenlets too, thousands of lines.
    for one in gc.get_objects():
        if isinstance(one, gevent.Greenlet) and not one.dead:
            yield f"{one!r}\n"
            yield from traceback.format_stack(one.gr_frame)


# --- randomness ----------------------------------------------------------------------------------


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """A random.Random whose seed depends on GNATS_SEED and the name of the test, nothing else."""
    request.node.add_report_section("setup", "seed", f"repeat with GNATS_SEED={SEED}")
    return random.Random(f"{SEED}:{request.node.nodeid}")


# --- certificates ------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    """An `Authority` of this test alone, whose files are in *tmp_path*."""
    pytest.importorskip("trustme")
    from authority import Authority

    return Authority(tmp_path)


# --- connections ---------------------------------------------------------------------------------

_subjects = NUID()


@pytest.fixture
def connect(shared_nats_server: NatsServer) -> Iterator[Callable[..., gnats.Connection]]:
    """Connect to the server that tests share; what was opened is closed, and its books audited."""
    with contextlib.ExitStack() as opened:

        def make(servers: Any = None, **fields: Any) -> gnats.Connection:
            conn = gnats.connect(servers or shared_nats_server.url, **fields)
            opened.callback(finish, conn)
            return conn

        yield make


@pytest.fixture
def conn(connect: Callable[..., gnats.Connection]) -> gnats.Connection:
    return connect()


@pytest.fixture
def subject() -> str:
    """One that no other test uses."""
    return f"test.{_subjects.next()}"


# --- leaks ---------------------------------------------------------------------------------------

# Filled by a callback of gevent: a walk over gc.get_objects() instead takes 12 ms per test.
_spawned: weakref.WeakSet[gevent.Greenlet[..., Any]] = weakref.WeakSet()


def _is_ours(spawned: gevent.Greenlet[..., Any]) -> bool:
    run: Any = spawned._run  # type: ignore[attr-defined]
    while isinstance(run, functools.partial):
        run = run.func
    module = getattr(run, "__module__", None) or ""
    return f"{module}.".startswith("gnats.") and not f"{module}.".startswith("gnats.testing.")


def _remember(spawned: gevent.Greenlet[..., Any]) -> None:
    if _is_ours(spawned):
        _spawned.add(spawned)


gevent.Greenlet.add_spawn_callback(_remember)


_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Remember, for the fixture below, that a test failed."""
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def _no_greenlet_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a greenlet of gnats running. Those of wider fixtures are not its own.

    A test that failed anyway is not blamed: what it left is only killed. Sees what was spawned
    through gevent.Greenlet, in this process.
    """
    # Not the dead ones: while they are held here, no collection could free what they hold.
    before = {one for one in _spawned if not one.dead}
    yield
    failed = request.node.stash.get(_failed, False)
    deadline = monotonic() + (0 if failed else LEAK_GRACE)
    while left := [one for one in set(_spawned) - before if not one.dead]:
        if monotonic() < deadline:
            gevent.sleep(0.005)
            continue
        names = "\n".join(f"  {one!r}" for one in left)
        gevent.killall(left, block=True, timeout=LEAK_GRACE)
        if not failed:
            pytest.fail(f"greenlets left {LEAK_GRACE:g} s after the test:\n{names}", pytrace=False)
        break
