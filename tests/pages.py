"""What a page tells its reader to save: a block of Python behind a line such as "In `app.py`:"."""

from __future__ import annotations

import re
from pathlib import Path

_FILE = re.compile(r"`([\w/.]+\.py)`[^`\n]*:\n\n```python\n(.*?)^```$", re.M | re.S)


def files(page: Path) -> dict[str, str]:
    """Its files: name, as the page has it, and text."""
    return dict(_FILE.findall(page.read_text("utf-8")))
