"""Importing gnats and making a connection starts nothing, patched or not; the public names exist.

Each check runs in a process of its own: this one has long had its hub.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap

import pytest

import gnats
from gnats import errors
from gnats.testing import NatsServer

PATCH = "from gevent import monkey; monkey.patch_all()\n"


def run(code: str, *options: str) -> str:
    """Run *code* in a fresh interpreter where every warning is an error; return its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GEVENT", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=50,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# What exists beside the code: hubs, threads, descriptors.
WHAT_IS_THERE = """
import os, sys, threading
from gevent._hub_local import get_hub_if_exists

def there():
    tasks = os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else [0]
    files = sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
    return (get_hub_if_exists(), threading.active_count(), len(tasks), len(files))
"""


def test_import_starts_nothing() -> None:
    run(
        WHAT_IS_THERE
        + """
before = there()
assert before[:3] == (None, 1, 1), before
import gnats
assert there() == before, there()
assert "asyncio" not in sys.modules
assert "gnats.testing" not in sys.modules
"""
    )


def test_import_alone_creates_no_hub_and_knows_no_asyncio() -> None:
    run(
        """
import sys
import gnats
import gevent._hub_local
assert gevent._hub_local.get_hub_if_exists() is None
for name in ("asyncio", "pytest", "concurrent.futures.process", "multiprocessing"):
    assert name not in sys.modules, name
"""
    )


@pytest.mark.parametrize("first", ["", PATCH], ids=["unpatched", "patched"])
def test_a_connection_that_is_not_connected_creates_nothing(first: str) -> None:
    run(
        first
        + WHAT_IS_THERE
        + """
before = there()
import gnats
conn = gnats.Connection()
conn.add_server("nats://a:4222")
conn.set_servers(["nats://b:4222", "nats://c:4222"])
options = gnats.ConnectionOptions(servers="a,b", callbacks=gnats.Callbacks(error_cb=print))
other = gnats.Connection(options, max_reconnect=-1, replay_unconfirmed=True)
repr(conn), conn.stats, conn.servers, conn.status, conn.is_connected, conn.last_error
conn.new_inbox(), conn.options, conn.max_payload, conn.connected_url, conn.client_id
for call in (lambda: conn.publish("a", b"x"), lambda: conn.subscribe("a"), conn.rtt, conn.flush):
    try:
        call()
    except gnats.errors.Error:
        pass
    else:
        raise AssertionError("not connected")
assert there() == before, (there(), before)
assert "asyncio" not in sys.modules
del conn, other
assert there() == before, there()
"""
    )


def test_import_patches_nothing() -> None:
    run(
        """
import socket, ssl, threading, time, select
before = (socket.socket, ssl.SSLContext, threading.Lock, time.sleep, select.select)
import gnats
gnats.Connection()
assert before == (socket.socket, ssl.SSLContext, threading.Lock, time.sleep, select.select)
from gevent import monkey
assert not monkey.saved
"""
    )


def test_patching_may_come_after_the_import() -> None:
    run(
        """
import gnats
conn = gnats.Connection()
from gevent import monkey
monkey.patch_all()
import socket, gevent.socket
assert socket.socket is gevent.socket.socket
"""
    )


def test_patching_may_come_after_the_connect(shared_nats_server: NatsServer) -> None:
    """As where a settings module connects, and the server patches after it."""
    said = run(
        f"""
import os, sys, warnings
import gnats
warnings.simplefilter("ignore")  # gevent's own words about a late patch
conn = gnats.connect("{shared_nats_server.url}", reconnect_wait=0.05)
conn.subscribe("late.patch", cb=lambda msg: msg.respond(msg.data.upper()))
from gevent import monkey
monkey.patch_all()
import threading
assert conn.request("late.patch", b"main", timeout=5.0).data == b"MAIN"
said = []
thread = threading.Thread(
    target=lambda: said.append(conn.request("late.patch", b"thread", timeout=5.0).data)
)
thread.start()  # a greenlet by now, of the thread that connected
thread.join()
assert said == [b"THREAD"], said
conn.force_reconnect()
conn.wait_for_status("reconnecting", timeout=5.0)
conn.wait_for_status("connected", timeout=5.0)
assert conn.request("late.patch", b"again", timeout=5.0).data == b"AGAIN"
sub = conn.subscribe("late.thread")
monkey.get_original("_thread", "start_new_thread")(conn.publish, ("late.thread", b"native"))
assert sub.next_msg(5.0).data == b"native"
child = os.fork()
if child == 0:
    done = conn.request("late.patch", b"child", timeout=5.0).data == b"CHILD"
    os._exit(0 if done else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
conn.drain()
print("ok")
"""
    )
    assert said == "ok\n"


TALK = """
import gevent

def talk(conn, server):
    conn.connect(server)
    got = []
    sub = conn.subscribe("a", cb=got.append)
    conn.flush()
    conn.close()
    assert conn.is_closed

from gevent import socket as green

def serve(listener):
    peer, _ = listener.accept()
    peer.sendall(b"INFO {}\\r\\n")
    data = b""
    while True:
        chunk = peer.recv(65536)
        if not chunk:
            return
        data += chunk
        while b"\\r\\n" in data:
            line, _, data = data.partition(b"\\r\\n")
            if line == b"PING":
                peer.sendall(b"PONG\\r\\n")

def main():
    listener = green.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    greenlet = gevent.spawn(serve, listener)
    with gevent.Timeout(10):
        talk(conn, "127.0.0.1:%d" % listener.getsockname()[1])
        greenlet.join()
    listener.close()
"""
MAKE = "import gnats; conn = gnats.Connection()\n"


@pytest.mark.parametrize(
    "order",
    [[MAKE], [PATCH, MAKE], [MAKE, PATCH], ["import gnats\n", PATCH, MAKE]],
    ids=["unpatched", "patched first", "patched last", "patched between"],
)
def test_it_works_in_any_order(order: list[str]) -> None:
    assert run("".join(order) + TALK + "main(); print('talked')") == "talked\n"


def test_a_connection_made_before_a_fork_is_usable_in_the_child() -> None:
    run(
        MAKE
        + """
import os, sys
pid = os.fork()
"""
        + TALK
        + """
main()
if pid:
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
"""
    )


def test_the_version() -> None:
    out = run("import gnats; print(gnats.__version__)")
    assert out.strip() == gnats.__version__
    assert gnats.__version__[0].isdigit()


# -- the public face (DESIGN 2) ----------------------------------------------------------


def names(text: str) -> list[str]:
    return text.split()


TOP = names(
    """
    connect Connection ConnectionOptions ReconnectOptions Callbacks ConnectionStatus
    Subscription Msg Headers errors
    """
)

CONNECTION_METHODS = names(
    """
    connect publish subscribe request request_many flush drain close rtt new_inbox
    force_reconnect add_server set_servers wait_for_status __enter__ __exit__
    """
)

CONNECTION_PROPERTIES = names(
    """
    status is_connected is_reconnecting is_draining is_closed stats last_error connected_url
    servers discovered_servers server_info client_id max_payload
    """
)

SUBSCRIPTION_METHODS = names(
    """
    next_msg unsubscribe drain __iter__ __enter__ __exit__
    """
)
SUBSCRIPTION_PROPERTIES = names(
    """
    subject queue pending_msgs pending_bytes delivered dropped is_closed
    """
)

ERRORS = names(
    """
    Error ConnectionClosedError ConnectionReconnectingError ConnectionDrainingError
    NoServersError TimeoutError NoRespondersError OutboundBufferLimitError MaxPayloadError
    BadSubjectError BadSubscriptionError SlowConsumerError StaleConnectionError
    AuthorizationError AuthenticationExpiredError PermissionsError MaxConnectionsError
    ProtocolError SecureConnRequiredError SecureConnWantedError FlushInterruptedError
    DrainTimeoutError ForkedConnectionError WrongThreadError HeaderError
    """
)

STATUSES = names(
    """
    disconnected connecting connected reconnecting draining_subs draining_pubs closed
    """
)


@pytest.mark.parametrize("name", TOP)
def test_public_names(name: str) -> None:
    assert hasattr(gnats, name)
    assert name in gnats.__all__


def test_all_is_true() -> None:
    assert len(gnats.__all__) == len(set(gnats.__all__))
    for name in gnats.__all__:
        assert hasattr(gnats, name)


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.Error)


@pytest.mark.parametrize("name", STATUSES)
def test_statuses(name: str) -> None:
    assert gnats.ConnectionStatus[name] == name


@pytest.mark.parametrize("name", CONNECTION_METHODS)
def test_methods_of_a_connection(name: str) -> None:
    assert inspect.isroutine(inspect.getattr_static(gnats.Connection, name))


@pytest.mark.parametrize("name", CONNECTION_PROPERTIES)
def test_properties_of_a_connection(name: str) -> None:
    value = inspect.getattr_static(gnats.Connection, name)
    assert isinstance(value, property)
    assert value.fset is None
    getattr(gnats.Connection(), name)


@pytest.mark.parametrize("name", SUBSCRIPTION_METHODS)
def test_methods_of_a_subscription(name: str) -> None:
    assert inspect.isroutine(inspect.getattr_static(gnats.Subscription, name))


@pytest.mark.parametrize("name", SUBSCRIPTION_PROPERTIES)
def test_properties_of_a_subscription(name: str) -> None:
    assert hasattr(gnats.Subscription, name)


@pytest.mark.parametrize("name", ["subject", "reply", "data", "headers", "sub", "respond"])
def test_names_of_a_message(name: str) -> None:
    assert hasattr(gnats.Msg, name)


def test_public_docstrings_exist() -> None:
    for owner in (gnats.Connection, gnats.Subscription, gnats.Msg):
        for name in vars(owner):
            value = inspect.getattr_static(owner, name)
            if not name.startswith("_") and inspect.isfunction(value):
                assert value.__doc__, f"{owner.__name__}.{name}"


_SIGNATURES = {
    "publish": "(self, subject, payload=b'', reply='', headers=None)",
    "request": "(self, subject, payload=b'', timeout=0.5, headers=None)",
    "flush": "(self, timeout=10.0)",
    "drain": "(self, timeout=None)",
    "close": "(self)",
    "add_server": "(self, url)",
    "set_servers": "(self, urls)",
    "wait_for_status": "(self, status, timeout)",
}


def _bare(function: object) -> inspect.Signature:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=bare, return_annotation=signature.empty)


@pytest.mark.parametrize("name", list(_SIGNATURES))
def test_signatures_of_a_connection(name: str) -> None:
    shown = str(_bare(getattr(gnats.Connection, name)))
    if name == "wait_for_status":
        assert shown.startswith("(self, status, timeout")
    else:
        assert shown == _SIGNATURES[name]


def test_signature_of_subscribe() -> None:
    parameters = _bare(gnats.Connection.subscribe).parameters
    first = ["self", "subject", "queue", "cb", "max_msgs", "pending_msgs_limit"]
    assert list(parameters) == [*first, "pending_bytes_limit", "concurrency", "around"]
    for name in ("max_msgs", "pending_msgs_limit", "pending_bytes_limit", "concurrency"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["queue"].default == ""
    assert parameters["concurrency"].default == 1


def test_signatures_of_a_subscription_and_a_message() -> None:
    assert str(_bare(gnats.Subscription.next_msg)) == "(self, timeout=1.0)"
    assert str(_bare(gnats.Subscription.unsubscribe)) == "(self, limit=0)"
    assert str(_bare(gnats.Subscription.drain)) == "(self, timeout=None)"
    assert list(_bare(gnats.Msg.respond).parameters) == ["self", "payload", "headers"]
    assert str(_bare(gnats.connect)) == "(servers=None, *, options=None, **fields)"
