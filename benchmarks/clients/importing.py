"""How long ``import`` takes in a process that has done nothing else, less the start of Python.

Run as ``python -m benchmarks.clients.importing PACKAGE COUNT``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from benchmarks.clients.contract import say


def seconds(program: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - began


def main(package: str, count: int) -> None:
    seconds(f"import {package}")  # writes the byte code
    pairs = [(seconds(f"import {package}"), seconds("pass")) for _ in range(count)]
    say(median=median(with_it - without for with_it, without in pairs), count=count)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
