"""On what it was measured: the machine and the versions."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib import metadata

import gevent

import gnats
from benchmarks.peers import NODE_FOLDER

__all__ = ["describe"]

_PACKAGES = ("gevent", "greenlet", "nats-py", "uvloop", "nats-core", "natsrpy", "nats-python")


def describe() -> dict[str, str]:
    """Name to value, in the order in which they are printed."""
    facts = {
        "machine": f"{_processor()}, {os.cpu_count()} cores, load {_load()}",
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gnats": f"{gnats.__version__}, {'compiled' if gnats.compiled else 'pure'}",
    }
    for package in _PACKAGES:
        facts[package] = _version(package)
    facts["node"] = _node()
    facts["loop"] = f"{gevent.config.loop.__module__}.{gevent.config.loop.__name__}"
    return facts


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _node() -> str:
    """Node and its client, or that there is none."""
    node = shutil.which("node")
    if node is None:
        return "not installed"
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    try:
        package = NODE_FOLDER / "node_modules/@nats-io/transport-node/package.json"
        client = json.loads(package.read_text("utf-8"))["version"]
    except OSError:
        client = "not installed"
    return f"{said.stdout.strip()}, @nats-io/transport-node {client}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            for line in cpuinfo:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"
