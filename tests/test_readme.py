"""What README.md and docs/ say is true: their code runs, their commands and names exist.

tox itself is not run here; .ci/run does that.
"""

from __future__ import annotations

import ast
import configparser
import dataclasses
import inspect
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from gevent.subprocess import PIPE, STDOUT, Popen
from pages import files

import gnats
import gnats.wsgi
from gnats.cli.program import parser
from gnats.testing import NatsServer

# Nothing here depends on the python's gevent, loop or patching.
pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
RECONNECTION = ROOT / "docs" / "reconnection.md"
WSGI = ROOT / "docs" / "wsgi.md"
BESIDE = {"wsgi"}  # the house: on no floor
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

URL = "nats://127.0.0.1:4222"
INSTALL_TOX = "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox run"
TIMEOUT = 30.0  # seconds for one block of code
LONG = re.compile(r"range\(\d{3,}\)")  # what is to be watched takes a minute; here it need not

# What stands in a page beside gnats, tox, pytest and pip.
KNOWN = {
    "python3 -m venv .venv",
    "python3 -m venv venv",
    ". activate",
    ". venv/bin/activate",
    "mkdir hello",
    "cd hello",
    "pip install tox",
    "pip install .",
    "pytest",
    """echo '{"apples": 2}' > order.json""",
    "date > app.log",
    # test_start.py runs these.
    "gunicorn app:application",
    "gunicorn 'shop:create_app()'",
    "gunicorn shop.wsgi",
    "django-admin startproject shop .",
    "python manage.py startapp orders",
    "celery -A shop worker -P gevent",
    """python -c 'import shop; shop.cook.delay("two apples")'""",
    "curl localhost:8000",
    "curl -d 'two apples' localhost:8000/orders",
}

# What a block may be about that only `tox run -e frameworks` is sure to have, and its package.
PACKAGES = {
    "flask": "flask",
    "django": "django",
    "celery": "celery",
    "prometheus": "prometheus_client",
    "opentelemetry": "opentelemetry.sdk",
}
FRAMEWORKS = re.compile(rf"^from (?:gnats\.contrib\.)?({'|'.join(PACKAGES)})", re.MULTILINE)


def shown(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def frameworks(code: str, page: Path) -> set[str]:
    """What a block needs, and the files of its page that it imports."""
    for name, text in files(page).items():
        if f"\nfrom {name[:-3].replace('/', '.')} import " in f"\n{code}":
            code += text
    return set(FRAMEWORKS.findall(code))


def blocks(*languages: str) -> list[Any]:
    """The fenced blocks in *languages*, each named by its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 1
                marks = [pytest.mark.frameworks] if frameworks(match[2], page) else []
                found.append(pytest.param(match[2], id=f"{shown(page)}:{line}", marks=marks))
    return found


def commands() -> list[Any]:
    return [
        pytest.param(line, id=line)
        for block in blocks("sh", "bash", "shell", "console")
        for line in block.values[0].splitlines()
    ]


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the rows of the table whose first column has *heading*."""
    text = page.read_text(encoding="utf-8")
    match = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.M)
    assert match, f"no table with {heading!r} in {page.name}"
    return [[c.strip() for c in row.strip("|").split("|")] for row in match[1].splitlines()]


def ticked(cell: str) -> list[str]:
    return re.findall(r"`(\w+)", cell)


def ini(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / name, encoding="utf-8")
    return parser


# -- code ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", blocks("python", "py"))
def test_the_code_runs(
    code: str, request: pytest.FixtureRequest, shared_nats_server: NatsServer, tmp_path: Path
) -> None:
    page = ROOT / request.node.callspec.id.partition(":")[0]
    for name in frameworks(code, page):
        pytest.importorskip(PACKAGES[name])
    script = tmp_path / "block.py"
    for name, text in {**files(page), script.name: LONG.sub("range(20)", code)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace(URL, shared_nats_server.url), encoding="utf-8")
    process = Popen([sys.executable, str(script)], stdout=PIPE, stderr=STDOUT, cwd=tmp_path)
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 0, output.decode()
    assert b"Traceback" not in output, output.decode()


def test_there_is_code() -> None:
    assert len(blocks("python")) >= 2
    (first, *_) = blocks("python")
    lines = [line for line in first.values[0].splitlines() if line.strip()]
    assert len(lines) <= 15
    for word in ("publish", "subscribe", "request", "disconnected_cb", "reconnected_cb"):
        assert word in first.values[0]


def test_no_block_is_overlooked() -> None:
    known = ("python", "py", "sh", "bash", "shell", "console", "text", "{toctree}", "{eval-rst}")
    for page in PAGES:
        fences = re.findall(r"^```.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
        for fence in fences[::2]:
            assert fence[3:] in known, f"{page.name}: {fence}"
        assert set(fences[1::2]) <= {"```"}, page.name


# -- commands ------------------------------------------------------------------------------


def test_the_two_commands() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert f"{INSTALL_TOX} -e demo" in lines
    assert INSTALL_TOX in lines


@pytest.mark.parametrize("command", commands())
def test_the_command_exists(command: str) -> None:
    for part in command.split(" && "):
        _check_command(part.replace(".venv/bin/", ""))


def _check_command(command: str) -> None:
    if command.startswith("gnats ") or " | gnats " in command:
        # That they do what they say is in test_cli.py.
        words = shlex.split(command.rpartition("| ")[2])
        parser().parse_args(words[1:])
        return
    tox, setup = ini("tox.ini"), ini("setup.cfg")
    if command in KNOWN:
        return
    if command == "tox run":
        assert tox["tox"]["env_list"].split()
        return
    environment = re.fullmatch(r"tox run -e (\w+)", command)
    label = re.fullmatch(r"tox run -m (\w+)", command)
    extras = re.fullmatch(r"pip install (?:-e )?'\.(?:/gnats)?\[([\w,]+)\]'", command)
    program = re.match(r"python -m tests\.(\w+) ", command)
    if environment:
        assert f"testenv:{environment[1]}" in tox
    elif label:
        assert re.search(rf"^{label[1]} = ", tox["tox"]["labels"], re.MULTILINE)
    elif extras:
        assert set(extras[1].split(",")) <= set(setup["options.extras_require"])
    elif program:
        assert (ROOT / "tests" / program[1] / "__main__.py").exists()
    else:
        pytest.fail(f"nobody checks this command: {command}")


def test_tox_runs_the_demonstration() -> None:
    assert "python examples/reconnection_test.py" in ini("tox.ini")["testenv:demo"]["commands"]


# -- names ---------------------------------------------------------------------------------


def _fields(*classes: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for cls in classes for field in dataclasses.fields(cls)}


def test_the_options_and_their_defaults() -> None:
    fields = _fields(gnats.ConnectionOptions, gnats.ReconnectOptions, gnats.Callbacks)
    for name, default, _ in table(README, "option"):
        assert ast.literal_eval(default.strip("`")) == fields[name.strip("`")].default, name


def test_the_arguments_of_a_web_application() -> None:
    fields = _fields(gnats.ConnectionOptions, gnats.ReconnectOptions)
    arguments = inspect.signature(gnats.wsgi.Nats).parameters
    for cell, default, _ in table(WSGI, "argument"):
        (name,) = ticked(cell)
        own = gnats.wsgi.DEFAULTS[name] if name in fields else arguments[name].default
        assert ast.literal_eval(default.strip("`")) == own, name


def test_the_states() -> None:
    named = [ticked(row[0])[0] for row in table(RECONNECTION, "status")]
    assert named == [status.value for status in gnats.ConnectionStatus]


def test_the_callbacks() -> None:
    named = [ticked(row[0])[0] for row in table(RECONNECTION, "callback")]
    assert named == [*_fields(gnats.Callbacks), "custom_reconnect_delay_cb"]


def test_the_counters() -> None:
    named = {ticked(row[0])[0] for row in table(RECONNECTION, "counter of `conn.stats`")}
    assert named <= set(_fields(gnats.Stats))
    assert named >= {"sent", "uncertain", "dropped", "buffered"}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_errors_links_and_places(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for error in set(re.findall(r"`(\w+Error)`", text)):
        assert error == "OSError" or hasattr(gnats.errors, error), error
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target
    for tests in set(re.findall(r"tests/\w+\.py", text)):
        assert (ROOT / tests).exists(), tests


# -- the house -----------------------------------------------------------------------------


def _rooms() -> dict[str, set[str]]:
    """Each room of gnats and the rooms that it imports."""
    package = ROOT / "gnats"
    names = {p.stem for p in package.glob("*.py")} - {"__init__", "__main__", "_version", *BESIDE}
    rooms = {}
    for name in names:
        imported: set[str] = set()
        for node in ast.walk(ast.parse((package / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                imported |= {node.module} if node.module else {a.name for a in node.names}
        rooms[name] = imported & names
    return rooms


def _floors() -> dict[str, int]:
    """Each room and its floor, as the table tells."""
    rows = table(ARCHITECTURE, "floor")
    return {room: floor for floor, row in enumerate(rows) for room in ticked(row[1])}


def test_the_floors_name_every_room() -> None:
    assert sorted(_floors()) == sorted(_rooms())


def test_no_room_imports_from_above() -> None:
    floors = _floors()
    for room, imported in _rooms().items():
        for other in imported:
            assert floors[other] <= floors[room], f"{room} imports {other} from above"


def test_no_neighbours_import_each_other() -> None:
    left = _rooms()
    while left:
        free = {room for room, imported in left.items() if not imported & set(left)}
        assert free, f"a circle of imports: {left}"
        left = {room: imported for room, imported in left.items() if room not in free}


def test_where_a_change_goes() -> None:
    rooms = _rooms()
    for _, where in table(ARCHITECTURE, "I want to change ..."):
        named = [
            name
            for name in ticked(where)
            if not name.startswith(("gnats", "Nats", "Fake", "Chaos"))
        ]
        for name in named:
            if name in rooms:
                continue
            sources = [
                (ROOT / "gnats" / f"{n}.py").read_text(encoding="utf-8")
                for n in named
                if n in rooms
            ]
            assert any(f"def {name}(" in source for source in sources), f"{name} in {where}"


# -- what must not be in them --------------------------------------------------------------


def test_no_place_of_this_machine_is_named() -> None:
    files = [*PAGES, *sorted((ROOT / "examples").glob("*.py"))]
    home = os.path.expanduser("~")
    for file in files:
        text = file.read_text(encoding="utf-8")
        for place in ("/tmp", "/usr/", "/var/", f"{home}/", "site-packages"):
            assert place not in text, f"{place} in {file.name}"
