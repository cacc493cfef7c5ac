"""The benchmarks run, and report what they should. How fast is no business of a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gnats.testing import ServerError, find_binary

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.once,
    pytest.mark.timeout(200),  # some fifty processes, on a machine that may be busy
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
        timeout=150,
    )


@pytest.fixture(scope="module")
def needs_peer() -> None:
    if find_spec("nats") is None:
        pytest.skip("nats-py is not installed")
    try:
        find_binary()
    except ServerError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def smoke(
    needs_peer: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """One round of everything with very few messages: what was printed, and the JSON."""
    file = tmp_path_factory.mktemp("benchmarks") / "figures.json"
    done = run("--rounds", "1", "--scale", "0.005", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads(file.read_text("utf-8"))


def test_json_has_every_figure_of_every_client(smoke: tuple[Any, dict[str, Any]]) -> None:
    _, document = smoke
    assert document["errors"] == []
    assert {"machine", "python", "gnats", "gevent", "nats-py", "nats-server"} <= set(
        document["facts"]
    )
    figures = {figure["name"]: figure for figure in document["figures"]}
    both = {"gnats", "nats-py"}
    ceiling = both | {"bare socket"}
    clients = {
        "publish": ceiling,
        "publish, kept ÷ default": {"gnats", "gnats, kept"},
        "receive": ceiling,
        "publish, tls": both,
        "receive, tls ÷ tcp": both,
        "publish, ws ÷ tcp": both,
        "receive, ws": both,
        "100 requesters": both,
        "serial request, median": ceiling,
        "idle subscription, RSS": both,
        "idle subscription, traced": both,
        "restore 100 subscriptions": {"gnats"},
        "return, 1 subscriptions: first kept message": both | {"gnats, kept"},
        "return, 100 subscriptions: reconnected_cb": both | {"gnats, kept"},
        "return, full 8 MiB buffer: all confirmed": both | {"gnats, kept"},
    }
    for name, expected in clients.items():
        figure = figures[name]
        assert set(figure["medians"]) == expected, name
        assert all(len(values) == 1 for values in figure["rounds"].values()), name
    for name in ("publish", "receive", "100 requesters", "serial request, median"):
        figure = figures[name]
        assert figure["medians"]["gnats"] > 0
        assert figure["ratio"] == pytest.approx(
            figure["medians"]["gnats"] / figure["medians"]["nats-py"]
        )
        assert figure["met"] in (True, False)
    kept = figures["publish, kept ÷ default"]
    assert kept["ratio"] == pytest.approx(kept["medians"]["gnats, kept"] / kept["medians"]["gnats"])


def test_the_moments_of_a_return_follow_each_other(smoke: tuple[Any, dict[str, Any]]) -> None:
    _, document = smoke
    figures = {figure["name"]: figure["rounds"] for figure in document["figures"]}
    for what in ("1 subscriptions", "full 8 MiB buffer"):
        first = figures[f"return, {what}: first kept message"]
        confirmed = figures[f"return, {what}: all confirmed"]
        for client in first:
            assert 0 < first[client][0] < confirmed[client][0], (what, client)


def test_targets_are_those_of_the_issue(smoke: tuple[Any, dict[str, Any]]) -> None:
    _, document = smoke
    targets = {f["name"]: f["target"] for f in document["figures"] if f["target"] is not None}
    assert targets == {
        "publish": 3.0,
        "publish, kept ÷ default": 0.85,
        "receive": 1.8,
        "100 requesters": 2.0,
        "serial request, median": 0.7,
    }


def test_table_begins_with_ratios(smoke: tuple[Any, dict[str, Any]]) -> None:
    done, document = smoke
    lines = done.stdout.splitlines()
    assert lines[0].startswith("machine: ")
    head = next(index for index, line in enumerate(lines) if "gnats ÷ nats-py" in line)
    rows = lines[head + 1 :]
    assert len(rows) == len(document["figures"])
    publish = next(row for row in rows if " publish " in row)
    assert publish.split()[0].endswith("×")


@pytest.mark.usefixtures("needs_peer")
def test_only_runs_what_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run("--only", "restore", "--rounds", "2", "--scale", "0.001", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    (figure,) = json.loads(file.read_text("utf-8"))["figures"]
    assert figure["name"] == "restore 20 subscriptions"
    assert len(figure["rounds"]["gnats"]) == 2


@pytest.mark.parametrize("args", [("--only", "nothing"), ("--rounds", "0"), ("--scale", "nan")])
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
