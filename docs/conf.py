"""How Sphinx builds these pages: Markdown, the API from the docstrings, no network.

``tox run -e docs`` does it. The pages are written to be read in the repository as well, so what
only one of both readers needs is decided here, once: where a link to a file outside of docs/ leads,
and what a name in a signature is called.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# The compiled twins are the same, without signatures.
os.environ["GNATS_PURE_PYTHON"] = "1"

from sphinx.ext.napoleon import GoogleDocstring

import gnats

DOCS = Path(__file__).parent

project = "gnats"
author = "The gnats developers"
release = version = gnats.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
default_role = "literal"  # `name` in a docstring is code, as in Markdown
nitpicky = True

myst_heading_anchors = 4

# -- the API -------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_mock_imports = ["celery", "django", "opentelemetry", "prometheus_client"]
autodoc_type_aliases = {  # api/messages.md says what they are
    "Around": "gnats.subscription.Around",
    "Handler": "gnats.mailbox.Handler",
    "HeaderSource": "gnats.headers.HeaderSource",
    "Payload": "gnats.payload.Payload",
    "Sentinel": "gnats.requests.Sentinel",
    "Servers": "gnats.url.Servers",
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
# What is not ours has no page here, and what is ours but not public has none either.
nitpick_ignore_regex = [
    ("py:.*", r"(?!gnats\.).*"),
    ("py:.*", r"gnats\.(backoff\.Deadline|contrib\.flask\.App|wsgi\.H|.*\.T)"),
]

# -- what it looks like ----------------------------------------------------------------------

html_theme = "furo"
html_title = f"gnats {release}"
html_static_path = ["_static"]
html_css_files = ["gnats.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False

# A prompt is no part of a command.
copybutton_exclude = ".linenos, .gp"

# -- links to what is not in docs/ -----------------------------------------------------------

_LINK = re.compile(r"\[([^\]]+)\]\((\.\.?/[^)#]*)(#[^)]*)?\)")


def lead_out(_app: Any, page: str, source: list[str]) -> None:
    """A link that leaves docs/ leads to the page that shows the file, or is the file's name."""

    def replace(link: re.Match[str]) -> str:
        text, target = " ".join(link[1].split()), (DOCS / page).parent / link[2]
        path = Path(os.path.normpath(target))
        if path.is_relative_to(DOCS):
            return link[0]
        name = path.relative_to(DOCS.parent).as_posix()
        if name == "README.md":
            return f"[{text}]({_up(page)}index.md)"
        if name.startswith("examples/"):
            if page == "examples":
                return f"```{{literalinclude}} ../{name}\n```"
            return f"[{text}]({_up(page)}examples.md#{_anchor(path.name)})"
        return f"`{name}`" if text.strip("`") in name else f"{text} (`{name}`)"

    source[0] = _LINK.sub(replace, source[0])


def _up(page: str) -> str:
    return "../" * page.count("/")


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# -- docstrings ------------------------------------------------------------------------------


def read_arguments(
    _app: Any, what: str, name: str, obj: Any, _options: Any, lines: list[str]
) -> None:
    """ "Args:" begins a list. Not for attributes: there a colon would end a type."""
    if what not in ("attribute", "property"):
        lines[:] = GoogleDocstring(lines, what=what, name=name, obj=obj).lines()


_ALIAS = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")


def name_aliases(
    _app: Any,
    _what: str,
    _name: str,
    _obj: Any,
    _options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """An alias within a union is shown by Sphinx as what stands for it: here is its name."""
    named = [part and _ALIAS.sub(r"\1", part) for part in (signature, returns)]
    return named[0], named[1]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", lead_out)
    app.connect("autodoc-process-docstring", read_arguments)
    app.connect("autodoc-process-signature", name_aliases)
