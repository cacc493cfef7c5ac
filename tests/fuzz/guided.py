"""One target under atheris: ``python -m fuzz.guided TARGET DIRECTORY ... -flag=value ...``.

Started by ``engines``; the flags are libFuzzer's.
"""

from __future__ import annotations

import sys

import atheris

# Only the rooms: what is outside tells nothing of them, and would be slower with instruments.
with atheris.instrument_imports(include=["gnats"]):
    import gnats  # noqa: F401  the metered copies are made from it, too

from fuzz.targets import TARGETS


def main() -> None:
    program, target, *rest = sys.argv
    atheris.Setup([program, *rest], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
