"""The floors of the house (docs/architecture.md), checked from the code.

A file imports only from floors below its own, or from files that stand to its left in its own
row. So there are no import circles, and none hidden in functions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import gnats

# Nothing here depends on the python's gevent, loop or patching.
pytestmark = pytest.mark.once

# The sources: what is installed has the compiled twins, and not what they are made of.
PACKAGE = Path(__file__).resolve().parent.parent / "gnats"

# Lowest first; within a row from left to right.
FLOORS = {
    "ground": ["_version"],
    "0 words": ["errors", "nuid", "backoff", "subjects"],
    "1 values": [
        "url",
        "headers",
        "payload",
        "status",
        "stats",
        "health",
        "metrics",
        "options",
        "info",
    ],
    "2 wire": [
        "commands",
        "lines",
        "_message",
        "_scanner",
        "_intake",
        "_mailbox",
        "_inbox",
        "twin",
        "message",
        "scanner",
        "parser",
        "refusals",
        "auth",
        "handshake",
        "websocket",
    ],
    "3 stores": ["mailbox", "inbox", "intake", "buffer", "pool"],
    "4 gevent begins": [
        "waiting",
        "threads",
        "transport",
        "forks",
        "farewell",
        "callbacks",
        "outbox",
        "pings",
        "delivery",
        "subscription",
        "registry",
        "requests",
    ],
    "5 greenlets": ["reader", "flusher", "keepalive", "session"],
    "6 lifecycle": ["seeker", "move", "restore", "reconnector", "roundtrip", "drain"],
    "roof": ["connection", "__init__"],
}
ORDER = [name for row in FLOORS.values() for name in row]
PURE = ORDER[: ORDER.index("waiting")]
# Beside the house: they use the public face only.
BESIDE = ["testing", "cli", "__main__", "wsgi", "contrib"]
# Public with all that is in them.
OPEN = ["errors", "metrics"]

# What a file may not import by any name, and the one that may.
SOCKETS = {"socket", "_socket", "ssl", "_ssl", "gevent.socket", "gevent.ssl", "gevent._socket3"}
SOCKET_USER = "transport"
# Packages of an extra: imported when they are first needed, and in one place.
OPTIONAL = {"auth": {"nkeys"}, "websocket": {"wsproto", "h11"}}
# Patching is the application's affair; these would rely on it, or block every greenlet.
NEVER = {"asyncio", "select", "selectors", "queue", "subprocess", "gevent.monkey", "importlib"}
# Asks what was there before a patch, which is as true with one as without.
UNPATCHED = {"threads": {"gevent.monkey.get_original"}}


# The names of the compiled twins; each is imported by ``twin``, and by the room that it is one of.
TWINS = [path.stem for path in sorted(PACKAGE.glob("*.pyx"))]
CHOICE = "not TYPE_CHECKING and twin.compiled"


class Import(NamedTuple):
    target: str  # "gnats.errors", "gevent.socket", ...
    line: int
    nested: bool  # elsewhere than at the top of the file


def imports_of(source: str, package: str = "gnats") -> list[Import]:
    """Every import of a file of *package*, with absolute names.

    ``from a import b`` counts as ``a.b``: whether b is a module cannot be seen, and need not be.
    """
    found = []
    tree = ast.parse(source)
    top = set(map(id, _top_statements(tree)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parts if node.level else []), *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [Import(name, node.lineno, id(node) not in top) for name in names]
    return found


def _top_statements(tree: ast.Module) -> Iterator[ast.stmt]:
    for statement in tree.body:
        yield statement
        # Names for annotations only; they have to keep to the floors as well.
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in (
            "TYPE_CHECKING",
            CHOICE,
        ):
            yield from statement.body


def python_of(path: Path) -> str:
    """The source, or of a compiled twin its imports."""
    source = path.read_text("utf-8")
    if path.suffix == ".py":
        return source
    return "\n".join(re.findall(r"^(?:from \S+ )?c?import .*$", source, re.M)).replace(
        "cimport", "import"
    )


def room_of(target: str) -> str | None:
    """The file of gnats that an import reaches, or None for other packages."""
    first, *rest = target.split(".")
    if first != "gnats":
        return None
    if rest and (rest[0] in ROOMS or rest[0] in BESIDE):
        return rest[0]
    return "__init__"


def reaches(target: str, modules: set[str]) -> bool:
    return any(target == module or target.startswith(f"{module}.") for module in modules)


ROOMS = {path.stem: path for path in sorted((*PACKAGE.glob("*.py"), *PACKAGE.glob("*.pyx")))}
IMPORTS = {name: imports_of(python_of(path)) for name, path in ROOMS.items()}
each_room = pytest.mark.parametrize("name", [name for name in ROOMS if name not in BESIDE])


# -- the plan and the house are the same -------------------------------------------------


@each_room
def test_every_file_has_its_place(name: str) -> None:
    assert name in ORDER, f"gnats/{name}.py has no floor: give it a place in the table"


def test_every_place_has_its_file() -> None:
    assert [name for name in ORDER if name not in ROOMS] == []
    assert len(ORDER) == len(set(ORDER))


def test_packages_are_known() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert packages <= set(BESIDE)


# -- the floors --------------------------------------------------------------------------


@each_room
def test_imports_go_down_only(name: str) -> None:
    below = set(ORDER[: ORDER.index(name)])
    wrong = [
        f"gnats/{name}.py:{one.line} imports {one.target}"
        for one in IMPORTS[name]
        if (room := room_of(one.target)) is not None and room not in below
    ]
    assert wrong == []


@each_room
def test_no_import_is_hidden(name: str) -> None:
    hidden = [
        f"gnats/{name}.py:{one.line} {one.target}"
        for one in IMPORTS[name]
        if one.nested and not reaches(one.target, OPTIONAL.get(name, set()))
        if name != "twin" or room_of(one.target) not in TWINS
    ]
    assert hidden == []
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(python_of(ROOMS[name])))
        if isinstance(node, ast.Name) and node.id == "__import__"
    ]
    assert calls == []


@pytest.mark.parametrize("name", TWINS)
def test_a_compiled_twin_is_used_by_its_room_alone(name: str) -> None:
    users = {
        room for room, imports in IMPORTS.items() for one in imports if room_of(one.target) == name
    }
    assert users - set(TWINS) == {name[1:], "twin"}


def test_no_import_circles() -> None:
    edges = {
        name: {room for one in IMPORTS[name] if (room := room_of(one.target)) and room != name}
        for name in ROOMS
    }
    left = dict(edges)
    while free := [name for name, below in left.items() if not below & set(left)]:
        for name in free:
            del left[name]
    assert left == {}, "these import each other in a circle, or stand on one"


# -- who may know what -------------------------------------------------------------------


@pytest.mark.parametrize("name", PURE)
def test_no_gevent_below_floor_4(name: str) -> None:
    known = {"gevent", "greenlet", "threading", "_thread", *SOCKETS}
    wrong = [one for one in IMPORTS[name] if reaches(one.target, known)]
    assert wrong == []


@each_room
def test_sockets_are_in_one_file(name: str) -> None:
    users = [one for one in IMPORTS[name] if reaches(one.target, SOCKETS)]
    assert name == SOCKET_USER or users == []


def test_that_one_file_uses_gevents_socket() -> None:
    targets = {one.target for one in IMPORTS[SOCKET_USER]}
    assert "gevent.socket" in targets
    assert not targets & {"socket", "ssl"}


@each_room
def test_nothing_relies_on_patching(name: str) -> None:
    allowed = UNPATCHED.get(name, set())
    assert [
        one for one in IMPORTS[name] if reaches(one.target, NEVER) and one.target not in allowed
    ] == []


@pytest.mark.parametrize(
    "path",
    sorted(path for beside in BESIDE for path in PACKAGE.glob(f"{beside}*/**/*.py"))
    + [PACKAGE / f"{beside}.py" for beside in BESIDE if f"{beside}" in ROOMS],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_beside_the_house_only_the_public_face_is_used(path: Path) -> None:
    package = ".".join(["gnats", *path.relative_to(PACKAGE).parts[:-1]])
    for one in imports_of(path.read_text("utf-8"), package):
        first, *rest = one.target.split(".")
        if first != "gnats" or not rest or rest[0] in BESIDE:
            continue
        if rest[0] in OPEN:
            continue
        assert rest[0] in gnats.__all__, f"{path}:{one.line} imports {one.target}"
        assert len(rest) == 1, f"{path}:{one.line} imports {one.target}"


# -- the checker itself ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "nested"),
    [
        ("from . import commands", "gnats.commands", False),
        ("from .errors import Error", "gnats.errors.Error", False),
        ("from gnats.errors import Error", "gnats.errors.Error", False),
        ("import gnats.errors", "gnats.errors", False),
        ("import gnats", "gnats", False),
        ("from gevent import socket", "gevent.socket", False),
        ("import gevent.socket as s", "gevent.socket", False),
        ("def f():\n    from . import pool", "gnats.pool", True),
        ("class A:\n    import ssl", "ssl", True),
        ("try:\n    import ssl\nexcept ImportError: pass", "ssl", True),
        ("if TYPE_CHECKING:\n    from .pool import X", "gnats.pool.X", False),
        ("if x:\n    import ssl", "ssl", True),
    ],
)
def test_the_checker_sees(source: str, target: str, nested: bool) -> None:
    assert [one[::2] for one in imports_of(source)] == [(target, nested)]


def test_the_checker_reads_relative_names_of_subpackages() -> None:
    (one,) = imports_of("from .fake import X", "gnats.testing")
    assert one.target == "gnats.testing.fake.X"
    (one,) = imports_of("from ..pool import X", "gnats.testing")
    assert one.target == "gnats.pool.X"
    assert room_of(one.target) == "pool"
    assert room_of("gnats.Connection") == room_of("gnats") == "__init__"
    assert room_of("gnatsby.pool") is None
