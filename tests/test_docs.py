"""The documentation as a whole: nothing public is left out, every page can be found.

That its code runs and its links lead somewhere is in test_readme.py and test_cli.py; that it can be
built without a warning, the targets within pages included, is `tox run -e docs`.
"""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import gnats
import gnats.testing
import gnats.wsgi

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
API = sorted((DOCS / "api").glob("*.md"))

GROUPS = (gnats.ConnectionOptions, gnats.ReconnectOptions, gnats.Callbacks)
OPTIONS = {field.name for group in GROUPS for field in dataclasses.fields(group)}

# What may stand in a table of options beside them.
NO_OPTIONS = {"publish", "ServerURL", "SSLContext", "conn"}


def text(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def columns(name: str, heading: str, *numbers: int) -> list[tuple[str, ...]]:
    """Some columns of the table of a page whose headings begin with *heading*."""
    rows = re.search(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", text(name), re.M)
    assert rows, f"no table {heading!r} in {name}"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]
    return [tuple(row[number] for number in numbers) for row in cells]


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


def described() -> set[str]:
    """Every name that the reference has, in full."""
    found = set()
    for page in API:
        for kind, name in re.findall(
            r"^\.\. (auto\w+|py:data):: ([\w.]+)", page.read_text("utf-8"), re.M
        ):
            assert kind != "automodule" or name == "gnats.errors", name
            found.add(name)
    return found


def errors() -> list[str]:
    return [
        name
        for name, value in vars(gnats.errors).items()
        if inspect.isclass(value) and issubclass(value, gnats.errors.Error)
    ]


# -- the pages -------------------------------------------------------------------------------


def test_every_page_is_in_the_tree() -> None:
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", text("index.md"), re.M | re.S)
    listed = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES} - {"index"}
    assert sorted(listed) == sorted(pages)
    assert all(re.search(r"^:caption: \w", tree, re.M) for tree in trees)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_a_page_has_one_title_and_levels_without_gaps(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    levels = [len(marks) for marks in re.findall(r"^(#+) \S", prose, re.M)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))


@pytest.mark.parametrize("page", API, ids=lambda page: page.name)
def test_the_sessions_are_as_printed(page: Path) -> None:
    told: list[str] = []
    blocks = re.findall(r"^```\{eval-rst\}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    for block in blocks:
        session = doctest.DocTestParser().get_doctest(block, {}, page.name, str(page), 0)
        doctest.DocTestRunner().run(session, out=told.append)
    assert not told, "".join(told)


def test_there_are_sessions() -> None:
    assert sum(page.read_text("utf-8").count("\n>>> ") for page in API) > 8


def test_every_example_is_shown() -> None:
    shown = re.findall(r"^\[examples/(\S+)\]\(\.\./examples/\1\)$", text("examples.md"), re.M)
    files = (path.name for path in (ROOT / "examples").glob("*.py"))
    assert sorted(shown) == sorted(files)
    assert re.findall(r"^### (\S+)$", text("examples.md"), re.M) == shown


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", errors())
def test_every_error_has_its_paragraph(error: str) -> None:
    (body,) = re.findall(
        rf"^### {error}\n\n(.+?)(?=\n##|\Z)", text("troubleshooting.md"), re.M | re.S
    )
    assert len(body) > 40


def test_no_error_is_made_up() -> None:
    assert set(re.findall(r"^### (\w+)$", text("troubleshooting.md"), re.M)) == set(errors())


@pytest.mark.parametrize("page", ["from-nats-py.md", "from-go.md", "troubleshooting.md"])
def test_attributes_and_methods_exist(page: str) -> None:
    """``conn.name`` of gnats' columns and of the prose; nats-py's and Go's say ``nc``."""
    names = set(re.findall(r"`conn\.(\w+)", text(page)))
    assert names
    assert names <= set(dir(gnats.Connection))


def test_the_errors_of_nats_py() -> None:
    names = re.findall(r"^\| `nats\.errors\.(\w+)` \| (.*?) \|$", text("from-nats-py.md"), re.M)
    assert len(names) > 5
    for _theirs, ours in names:
        assert ticked(ours)
        assert set(ticked(ours)) <= set(errors()), ours


# -- the reference -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(gnats.__all__))
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert f"gnats.{name}" in described()


@pytest.mark.parametrize("module", [gnats.testing, gnats.wsgi], ids=lambda m: m.__name__)
def test_every_name_of_a_module_is_in_the_reference(module: ModuleType) -> None:
    names = {f"{module.__name__}.{name}" for name in module.__all__}
    assert names
    assert names <= described()


ADAPTERS = sorted(path.stem for path in (ROOT / "gnats" / "contrib").glob("[!_]*.py"))


def names_of_adapter(adapter: str) -> set[str]:
    """Read, not imported: that needs what it is an adapter to, and gunicorn's tells gnats that this
    process is an arbiter."""
    source = (ROOT / "gnats" / "contrib" / f"{adapter}.py").read_text("utf-8")
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return {f"gnats.contrib.{adapter}.{name}" for name in names}


@pytest.mark.parametrize("adapter", [name for name in ADAPTERS if name != "books"])
def test_every_name_of_an_adapter_is_in_the_reference(adapter: str) -> None:
    names = names_of_adapter(adapter)
    assert names
    assert names <= described()


def test_the_reference_has_only_what_exists() -> None:
    of_adapters = set().union(*map(names_of_adapter, ADAPTERS))
    for name in described() - of_adapters:
        home, _, last = name.rpartition(".")
        assert not home.startswith("gnats.contrib"), name
        assert hasattr(importlib.import_module(home), last), name


@pytest.mark.parametrize(
    "group", [*GROUPS, gnats.TLSOptions, gnats.Stats, gnats.Health], ids=lambda g: g.__name__
)
def test_every_field_says_what_it_is(group: type) -> None:
    lines, _ = inspect.getsourcelines(group)
    for field in dataclasses.fields(group):
        (at,) = (n for n, line in enumerate(lines) if re.match(rf"    {field.name}: ", line))
        assert "#:" in lines[at] or lines[at - 1].strip().startswith("#:"), field.name


# -- options in tables -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "heading", "number"),
    [
        ("from-nats-py.md", r"nats-py \| gnats \| what differs", 1),
        ("from-go.md", r"nats\.go \| gnats \| default", 1),
        ("from-go.md", r"nats-io \| lalinsky \| gnats", 2),
        ("production.md", "you want", 1),
    ],
)
def test_the_tables_name_our_options(page: str, heading: str, number: int) -> None:
    cells = [cell for (cell,) in columns(page, heading, number)]
    names = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    assert len(names) > 8
    assert names - NO_OPTIONS - {"gnats"} <= OPTIONS


def test_the_defaults_beside_gos_names() -> None:
    fields = {f.name: f for group in GROUPS for f in dataclasses.fields(group)}
    checked = 0
    for ours, told in columns("from-go.md", r"nats\.go \| gnats \| default", 1, 2):
        names = ticked(ours)
        words = re.split(r"[;:(]| for | after | per | without ", told)[0].strip()
        values = [part.strip(" `") for part in words.split(",")]
        if len(values) != len(names):
            values = values[:1] * len(names)
        for name, value in zip(names, values):
            value = re.sub(r"(\d+) (Ki|MiB)", _bytes, value)
            assert str(ast.literal_eval(value)) == str(fields[name].default), name
            checked += 1
    assert checked > 30


def _bytes(match: re.Match[str]) -> str:
    return str(int(match[1]) * {"Ki": 1024, "MiB": 1024 * 1024}[match[2]])


def test_nats_pys_names_are_those_that_an_error_would_tell() -> None:
    rows = columns("from-nats-py.md", r"nats-py \| gnats \| what differs", 0, 1)
    renamed = [
        (ticked(old)[0], ticked(new)[0])
        for old, new in rows
        if len(ticked(old)) == len(ticked(new)) == 1 and old != new
    ]
    assert len(renamed) > 8
    for old, new in renamed:
        with pytest.raises(TypeError, match=rf"did you mean '{new}'"):
            gnats.Connection(**{old: 1})


def test_what_is_the_same_is_so() -> None:
    rows = columns("from-nats-py.md", r"nats-py \| gnats \| what differs", 0, 1)
    same = {name for old, new in rows if new == "the same" for name in ticked(old)}
    assert len(same) > 10
    assert same <= OPTIONS


def test_every_option_of_nats_py_is_told() -> None:
    client = pytest.importorskip("nats.aio.client")
    rows = columns("from-nats-py.md", r"nats-py \| gnats \| what differs", 0)
    told = {name for (cell,) in rows for name in ticked(cell)}
    assert told == set(inspect.signature(client.Client.connect).parameters) - {"self"}
