"""Which twin of the hot path runs: the compiled one where it was built, or the pure one.

``message``, ``scanner``, ``mailbox``, ``intake`` and ``inbox`` are written twice: in Python, which
is the reference and runs everywhere, and in Cython, in the file of the same name with an
underscore. Both have the same names, results and errors; the same tests run on both.
``GNATS_PURE_PYTHON=1`` in the environment, read once, at import, selects the pure ones.
"""

from __future__ import annotations

import os

__all__ = ["compiled"]


def _is_compiled() -> bool:
    if os.environ.get("GNATS_PURE_PYTHON", "0") not in ("", "0"):
        return False
    try:
        from . import _inbox, _intake, _mailbox, _message, _scanner  # type: ignore[attr-defined]  # noqa: F401
    except ImportError:  # none was built, or for another interpreter
        return False
    return True


#: Whether the compiled twins are in use.
compiled = _is_compiled()
