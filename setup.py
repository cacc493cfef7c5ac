"""The compiled twins of the hot path. All else about the package is in setup.cfg.

They are optional: without Cython, or a compiler, or on another interpreter than CPython, the pure
ones are installed and used. ``GNATS_PURE_PYTHON=1`` asks for that.
"""

import os
import sys

from setuptools import Extension, setup

TWINS = ["message", "scanner", "mailbox", "intake", "inbox"]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    # What Cython makes for pickle trusts any state that it is given; Msg has its own.
    "auto_pickle": False,
}


def twins():
    if os.environ.get("GNATS_PURE_PYTHON", "0") not in ("", "0"):
        return []
    if sys.implementation.name != "cpython":
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:
        return []
    extensions = cythonize(
        [Extension(f"gnats._{name}", [f"gnats/_{name}.pyx"]) for name in TWINS],
        compiler_directives=DIRECTIVES,
    )
    for extension in extensions:
        # A compiler that is missing, or fails, is told and costs no installation. (Said here,
        # because cythonize makes them anew.)
        extension.optional = True
    return extensions


setup(ext_modules=twins())
