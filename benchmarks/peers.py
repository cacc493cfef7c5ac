"""Who is measured: the programs, what they need, and which of them can be had here."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import gnats
from benchmarks.cases import CORE, KEPT, NODE, OURS, PEER, PURE, RUST, SOCKET, SYNC, UVLOOP

__all__ = ["CLIENTS", "NODE_FOLDER", "Client", "environ_of", "present"]

NODE_FOLDER = Path(__file__).parent / "clients" / "node"


class Client(NamedTuple):
    """One column of the tables."""

    module: str  # that is run, or a file for Node
    needs: tuple[str, ...] = ()  # packages, by the names that they are imported by
    environ: tuple[tuple[str, str], ...] = ()
    share: float = 1.0  # of the messages: rates do not depend on it, the time that all take does

    @property
    def package(self) -> str:
        """What its users import."""
        return self.needs[0] if self.needs else "gnats"

    @property
    def command(self) -> list[str]:
        if self.module.endswith(".mjs"):
            return [shutil.which("node") or "node", str(NODE_FOLDER / self.module)]
        return [sys.executable, "-m", f"benchmarks.clients.{self.module}"]


#: In the order of the tables' columns.
CLIENTS = {
    OURS: Client("gnats_client"),
    PURE: Client("gnats_client", (), (("GNATS_PURE_PYTHON", "1"),)),
    KEPT: Client("gnats_kept_client"),
    PEER: Client("natspy_client", ("nats",)),
    UVLOOP: Client("natspy_client", ("nats", "uvloop"), (("GNATS_BENCH_UVLOOP", "1"),)),
    CORE: Client("natscore_client", ("nats.client", "nkeys")),
    RUST: Client("natsrpy_client", ("natsrpy",), share=0.1),
    SYNC: Client(
        "natspython_client", ("pynats",), (("PYTHONWARNINGS", "ignore"),)
    ),  # pkg_resources
    NODE: Client("client.mjs"),
    SOCKET: Client("socket_client"),
}


def present() -> tuple[dict[str, Client], list[str]]:
    """The clients that can be measured here, and a line for each that cannot: why."""
    found, missing = {}, []
    for name, client in CLIENTS.items():
        why = _why_not(name, client)
        if why:
            missing.append(f"{name}: {why}")
        else:
            found[name] = client
    return found, missing


def _why_not(name: str, client: Client) -> str:
    if name == PURE and not gnats.compiled:
        return "gnats is not compiled here, so the column 'gnats' is the pure one"
    if name == NODE:
        if shutil.which("node") is None:
            return "there is no node here"
        if not (NODE_FOLDER / "node_modules").is_dir():
            return "its client is not installed: npm install, in benchmarks/clients/node"
    if name == CORE and sys.version_info < (3, 13):
        return "it needs Python 3.13"
    absent = [package for package in client.needs if not _is_installed(package)]
    return f"not installed: {', '.join(absent)} (pip install 'gnats[bench]')" if absent else ""


def _is_installed(package: str) -> bool:
    """Whether it can be imported, without importing anything: asyncio must not come in here."""
    outer, _, inner = package.partition(".")
    spec = find_spec(outer)
    if spec is None or not inner:
        return spec is not None
    return any((Path(folder) / inner).is_dir() for folder in spec.submodule_search_locations or ())


def environ_of(client: Client) -> dict[str, str]:
    """The environment of its program."""
    return {**os.environ, **dict(client.environ)}
