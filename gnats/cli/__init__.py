"""``gnats`` on the command line. One room per command, beside the rooms that they share.

It uses the public face of gnats only. Words for people go to standard error, results to standard
output; ``exits`` says what the exit status means.
"""

from gnats.cli.program import main

__all__ = ["main"]
