"""The compiled twins of the hot path. All else about the package is in setup.cfg.

They are optional: where there is no compiler, the pure ones are installed and used.
"""

from Cython.Build import cythonize
from setuptools import Extension, setup

TWINS = ["message", "scanner", "mailbox", "intake", "inbox"]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "embedsignature": False,
}

setup(
    ext_modules=cythonize(
        [Extension(f"gnats._{name}", [f"gnats/_{name}.pyx"], optional=True) for name in TWINS],
        compiler_directives=DIRECTIVES,
    )
)
