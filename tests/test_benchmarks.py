"""The benchmarks run, and report what they should. How fast is no business of a test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import gnats
from gnats.testing import ServerError, find_binary

ROOT = Path(__file__).resolve().parent.parent
SCALE = 0.005

if (ROOT / "benchmarks").is_dir():
    sys.path.append(str(ROOT))  # they are no part of the package
    from benchmarks import report
    from benchmarks.cases import CASES, chosen
    from benchmarks.peers import CLIENTS

pytestmark = [
    pytest.mark.once,
    pytest.mark.timeout(400),  # some two hundred processes, on a machine that may be busy
    pytest.mark.skipif(
        not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not in this tree"
    ),
]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=350,
    )


@pytest.fixture(scope="module")
def needs_server() -> None:
    try:
        find_binary()
    except ServerError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def smoke(
    needs_server: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """One round of everything with very few messages: what was printed, and the JSON."""
    file = tmp_path_factory.mktemp("benchmarks") / "figures.json"
    done = run("--rounds", "1", "--scale", str(SCALE), "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads(file.read_text("utf-8"))


def lines_of(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """By what is measured, and whose ratio it is."""
    return {(line["name"], line["first"]): line for line in document["figures"]}


def test_json_has_every_figure_of_every_client(smoke: tuple[Any, dict[str, Any]]) -> None:
    _, document = smoke
    assert document["errors"] == []
    facts = {"machine", "python", "gnats", "gevent", "nats-py", "natsrpy", "nats-server"}
    assert facts <= set(document["facts"])
    assert ("compiled" in document["facts"]["gnats"]) == gnats.compiled
    present = {client for client in CLIENTS if not _is_missing(client, document)}
    assert {"gnats", "gnats, kept", "bare socket"} <= present
    lines = lines_of(document)
    for case in chosen(None):
        for figure in case.figures:
            name = figure.name.format(count=max(1, int(case.count * SCALE)))
            line = lines[name, figure.first]
            assert set(line["rounds"]) == set(case.clients) & present, name
            if figure.field != "cpu/count":
                assert all(len(values) == 1 for values in line["rounds"].values()), name
            assert all(value > 0 for value in line["medians"].values() if name[:4] != "idle"), name
            medians = line["medians"]
            if figure.plain or figure.second not in medians:
                continue
            assert line["ratio"] == pytest.approx(medians[line["first"]] / medians[line["second"]])


def _is_missing(client: str, document: dict[str, Any]) -> bool:
    return any(line.startswith(f"{client}: ") for line in document["missing"])


def test_the_moments_of_a_return_follow_each_other(smoke: tuple[Any, dict[str, Any]]) -> None:
    _, document = smoke
    figures = {figure["name"]: figure["rounds"] for figure in document["figures"]}
    for what in ("1 subscriptions", "full 8 MiB buffer"):
        first = figures[f"return, {what}: first kept message"]
        confirmed = figures[f"return, {what}: all confirmed"]
        for client in first:
            assert 0 < first[client][0] < confirmed[client][0], (what, client)


def test_targets_are_those_that_were_asked_for() -> None:
    """Compiled, and pure."""
    asked = {f.name: f.targets for case in CASES for f in case.figures if f.targets != (None, None)}
    assert asked == {
        "publish": (6.0, 3.5),
        "receive": (5.0, 2.0),
        "receive ÷ bare socket": (0.8, 0.3),
        "serial request ÷ bare socket": (1.2, 1.25),
        "100 requesters": (3.0, 2.0),
        "receive 64 KiB ÷ bare socket": (0.8, 0.8),
        "publish, kept ÷ default": (0.85, 0.85),
        "receive, one of 1,000 subscriptions ÷ one": (0.8, 0.8),
        "receive, one of 100,000 subscriptions ÷ one": (0.8, 0.8),
    }
    limits = {f.name: f.limit for case in CASES for f in case.figures if f.limit is not None}
    assert set(limits.values()) == {1024}


def test_each_twin_is_judged_by_its_own_target() -> None:
    (publish,) = [case for case in CASES if case.name == "publish"]
    seconds = {"gnats": 1.0, "gnats, pure": 2.0, "nats-py": 6.5}
    results = {
        "publish": {
            name: [{"count": 100, "seconds": one, "cpu": one}] for name, one in seconds.items()
        }
    }
    lines = report.lines_of([publish], results, 1.0, compiled=True)
    verdicts = {(line.name, line.first): (line.ratio, line.met) for line in lines}
    assert verdicts["publish", "gnats"] == (6.5, True)
    assert verdicts["publish", "gnats, pure"] == (3.25, False)
    del results["publish"]["gnats, pure"]
    (line, _) = report.lines_of([publish], results, 1.0, compiled=False)
    assert (line.target, line.met) == (3.5, True)
    results["publish"]["nats-py"] = [None]
    (line, _) = report.lines_of([publish], results, 1.0, compiled=False)
    assert (line.ratio, line.met) == (None, None)


def test_ratios_come_first(smoke: tuple[Any, dict[str, Any]]) -> None:
    done, _ = smoke
    text = done.stdout.splitlines()
    assert text[0].startswith("machine: ")
    begins = [line.split()[:2] for line in text]
    assert begins.index(["ratio", "(rounds)"]) < begins.index(["what", "unit"])
    pattern = re.compile(r" gnats ÷ bare socket +receive ÷ bare socket$")
    (receive,) = [line for line in text if pattern.search(line)]
    assert receive.split()[0].endswith("×")


def test_the_picture(smoke: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    _, document = smoke
    stored = tmp_path / "figures.json"
    stored.write_text(json.dumps(document), "utf-8")
    for file in (tmp_path / "figures.svg", tmp_path / "figures.png"):
        done = run("--from-json", str(stored), "--plot", str(file))
        assert done.returncode == 0, done.stderr
        assert file.stat().st_size > 10_000
    again = tmp_path / "again.svg"
    assert run("--from-json", str(stored), "--plot", str(again)).returncode == 0
    assert again.read_bytes() == (tmp_path / "figures.svg").read_bytes()


@pytest.mark.usefixtures("needs_server")
def test_only_runs_what_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run("--only", "restore", "--rounds", "2", "--scale", "0.001", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    figure = json.loads(file.read_text("utf-8"))["figures"][0]
    assert figure["name"] == "restore 20 subscriptions"
    assert len(figure["rounds"]["gnats"]) == 2


@pytest.mark.parametrize(
    "args",
    [
        ("--only", "nothing"),
        ("--rounds", "0"),
        ("--scale", "nan"),
        ("--from-json", "figures.json"),
        ("--plot", "figures.bmp.txt"),
    ],
)
def test_bad_arguments_are_named(args: tuple[str, ...]) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert args[0] in done.stderr


@pytest.mark.frameworks
def test_what_a_flood_does_to_a_web_request() -> None:
    pytest.importorskip("gunicorn")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.web", "--rounds", "1", "--seconds", "0.2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flood ÷ nothing" in done.stdout
    assert "of 20 pages each" in done.stdout
    assert " 0 messages a second" not in done.stdout
