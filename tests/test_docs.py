"""The documentation as a whole: nothing public is left out, every page can be found.

That its code runs and its links lead somewhere is in test_readme.py and test_cli.py; that it can be
built without a warning is `tox run -e docs`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import gnats
import gnats.testing

pytestmark = pytest.mark.once

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
API = "\n".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))

OPTIONS = {
    field.name
    for group in (gnats.ConnectionOptions, gnats.ReconnectOptions, gnats.Callbacks)
    for field in dataclasses.fields(group)
}


def text(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def columns(name: str, number: int, heading: str) -> list[str]:
    """The cells of one column of every table of a page whose first heading is *heading*."""
    found = []
    for table in re.findall(rf"^\| {heading} \|.*\n\|[-| ]+\|\n((?:\|.*\|\n)+)", text(name), re.M):
        found += [row.strip("|").split("|")[number].strip() for row in table.splitlines()]
    assert found, f"no table with {heading!r} in {name}"
    return found


def errors() -> list[str]:
    return [
        name
        for name, value in vars(gnats.errors).items()
        if inspect.isclass(value) and issubclass(value, gnats.errors.Error)
    ]


def test_every_page_is_in_the_tree() -> None:
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", text("index.md"), re.M | re.S)
    listed = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES} - {"index"}
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("error", errors())
def test_every_error_has_its_paragraph(error: str) -> None:
    (body,) = re.findall(
        rf"^### {error}\n\n(.+?)(?=\n##|\Z)", text("troubleshooting.md"), re.M | re.S
    )
    assert len(body) > 20


def test_no_error_is_made_up() -> None:
    assert set(re.findall(r"^### (\w+)$", text("troubleshooting.md"), re.M)) == set(errors())


@pytest.mark.parametrize("name", sorted(set(gnats.__all__) - {"__version__", "errors"}))
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"^\.\. auto\w+:: gnats\.{name}$", API, re.M)


@pytest.mark.parametrize("name", gnats.testing.__all__)
def test_every_tool_for_tests_is_in_the_reference(name: str) -> None:
    assert re.search(rf"^\.\. auto\w+:: gnats\.testing\.{name}$", API, re.M)


@pytest.mark.parametrize(
    ("page", "heading", "number"),
    [
        ("from-nats-py.md", "nats-py", 1),
        ("from-go.md", r"Go \| Zig", 2),
        ("production.md", "you want", 1),
    ],
)
def test_the_tables_name_our_options(page: str, heading: str, number: int) -> None:
    names: set[str] = set()
    for cell in columns(page, number, heading):
        if "conn." in cell or "gevent" in cell or "msg" in cell or "gnats." in cell:
            continue
        names |= {name.partition("=")[0] for name in re.findall(r"`(\w[\w=.-]*)`", cell)}
    assert len(names) > 5
    calls = {"publish", "timeout"}
    assert names - calls <= OPTIONS, names - calls - OPTIONS


def test_nats_pys_names_are_those_that_an_error_would_tell() -> None:
    ours = {
        old: new
        for old, new in zip(
            columns("from-nats-py.md", 0, "nats-py"), columns("from-nats-py.md", 1, "nats-py")
        )
        if re.fullmatch(r"`\w+`", old) and re.fullmatch(r"`\w+`", new) and old != new
    }
    assert len(ours) > 6
    for old, new in ours.items():
        with pytest.raises(TypeError, match=rf"did you mean '{new.strip('`')}'"):
            gnats.Connection(**{old.strip("`"): 1})
