"""``python -m gnats``: the same as the command ``gnats``."""

import sys

from gnats.cli import main

if __name__ == "__main__":
    sys.exit(main())
