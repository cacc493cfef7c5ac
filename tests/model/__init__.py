"""The model test: random operations and faults, and what must be true behind each run of them.

*world* is what is around the connection under test, *known* what the model knows and how it
watches, *operations* what is done and what may come of it, *audit* the checks, *machine* one run
from connect to leftovers, *driver* makes lists of operations, runs and shortens them.
``python -m model``, in the directory of the tests, looks for as long as you like.
"""

from .driver import Driver, again, explore
from .known import Setup, Violation

__all__ = ["Driver", "Setup", "Violation", "again", "explore"]
