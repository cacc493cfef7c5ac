"""Sphinx: Markdown by myst, the API from docstrings, Furo's looks. ``tox run -e docs``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import gnats

project = "gnats"
author = "The gnats developers"
copyright = author
release = version = gnats.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_heading_anchors = 3
myst_links_external_new_tab = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"gnats {release}"
html_static_path = ["_static"]
html_css_files = ["gnats.css"]
html_show_copyright = False
html_show_sphinx = False

# A prompt is no part of a command.
copybutton_exclude = ".linenos, .gp"

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")
_ARGUMENT = re.compile(r" {4}([\w, *]+): (.+)")
_RST_LITERAL = re.compile(r"(?<!`)`([^`\n]+)`(?!`)(?!_)")


def outside(_app: Any, _name: str, source: list[str]) -> None:
    """Links to files beside docs/ work where the repository is browsed; here they are names."""
    source[0] = _OUTSIDE.sub(_as_name, source[0])


def _as_name(link: re.Match[str]) -> str:
    text, path = link[1].strip("`"), link[2]
    return f"`{path}`" if text in path else f"{text} (`{path}`)"


def docstrings(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """What ours have beside plain reST: names in single ticks, and ``Args:``."""
    lines[:] = [_RST_LITERAL.sub(r"``\1``", line) for line in _with_lists(lines)]


def _with_lists(lines: list[str]) -> Iterator[str]:
    """``Args:`` and what is indented below it, as a list."""
    within = False
    for line in lines:
        if line == "Args:":
            within = True
            yield from ("**Arguments**", "")
        elif within and line and not line.startswith(" "):
            within = False
            yield from ("", line)
        elif within and (argument := _ARGUMENT.fullmatch(line)):
            yield f"* ``{argument[1]}``: {argument[2]}"
        else:
            yield f"  {line.strip()}" if within and line.strip() else line


def setup(app: Any) -> None:
    app.connect("source-read", outside)
    app.connect("autodoc-process-docstring", docstrings)
