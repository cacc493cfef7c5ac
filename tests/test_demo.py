"""The demonstration: what it shows, what it says at the end, and that it can fail."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import gevent
import pytest
from shell import gnats, on_a_terminal, running

import gnats as library
from gnats.cli.demo import books
from gnats.cli.demo.record import Readers, Record
from gnats.cli.demo.stage import Stage
from gnats.cli.demo.view import picture

pytestmark = [pytest.mark.once, pytest.mark.timeout(120)]

FAST = ["--pace", "0.2"]


def test_it_says_what_happens_and_closes_the_books() -> None:
    done = gnats("demo", *FAST)
    for told in (
        "disconnected_cb",
        "reconnected_cb",
        "lame_duck_cb",
        "closed_cb",
        "killed (SIGKILL)",
    ):
        assert told in done.err
    assert re.search(r"[\d,]+ published, [\d,]+ delivered, [\d,]+ kept \(away\)", done.err)
    text = done.out.decode()
    assert "PASSED" in text
    (sums,) = re.findall(
        r"accepted +(.*) = sent (.*) \+ uncertain (.*) \+ dropped (.*) \+ buff", text
    )
    total, *parts = (int(number.replace(",", "")) for number in sums)
    assert total == sum(parts)


def test_at_least_once_as_json() -> None:
    done = gnats("demo", *FAST, "--at-least-once", "--json", "-q", "--rate", "1000")
    assert done.err == ""
    (facts,) = done.json
    assert facts["faults"] == []
    assert facts["stats"]["uncertain"] == 0
    assert facts["published"] > 500
    assert facts["stats"]["reconnects"] == 2
    assert [facts["readers"][name]["missing"] for name in ("callback", "next_msg")] == [0, 0]
    assert len(facts["outages"]) == 2
    assert facts["most_buffered"] > 100


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_the_timeline(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from gnats.cli.demo.plot import draw

    record = Record()
    record.begin_act("all is well")
    stats = library.Connection().stats
    for number in range(50):
        record.published += 10
        record.sample(stats, number < 20)
        if number == 20:
            record.link_lost()
        if number == 40:
            record.link_found()
        gevent.sleep(0.001)
    draw(record, tmp_path / f"outage.{ending}")
    head = (tmp_path / f"outage.{ending}").read_bytes()[:2000]
    assert {"svg": b"<svg", "png": b"PNG", "pdf": b"%PDF"}[ending] in head


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_begins(tmp_path: Path) -> None:
    assert ".svg" in gnats("demo", "--plot", "outage.txt", status=2).err
    assert "No such file" in gnats("demo", "--plot", str(tmp_path / "a/b.svg"), status=1).err
    (tmp_path / "c.svg").mkdir()
    assert "directory" in gnats("demo", "--plot", str(tmp_path / "c.svg"), status=1).err
    assert "--server" in gnats("-s", "nats://127.0.0.1:4222", "demo", status=2).err
    for words in (["--rate", "1"], ["--pace", "0"], ["--pace", "x"]):
        gnats("demo", *words, status=2)


def test_live_on_a_terminal() -> None:
    shown = on_a_terminal(["demo", *FAST]).err
    for seen in ("servers and pool", "reconnecting", "killed", "▶", "█", "PASSED", "KiB"):
        assert seen in shown, seen
    plain = on_a_terminal(["demo", *FAST, "--plain"]).err
    assert "servers and pool" not in plain
    assert "PASSED" in plain


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_picture_fits(columns: int) -> None:
    console_of = pytest.importorskip("rich.console").Console
    console = console_of(width=columns, height=40, record=True, file=io.StringIO())
    record = Record()
    record.note("callback", "x" * 300)
    console.print(picture(record, Stage(record, False, 500, 1.0)))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= columns
    assert "gnats demo" in lines[0]


def test_ctrl_c_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    with running(tmp_path, "demo") as command:
        command.await_err("its server is killed")
        command.signal()
        command.end(130)


# -- the verdict -------------------------------------------------------------------------------


def well() -> Record:
    """A record without a fault: 10 numbers."""
    record = Record(published=10)
    numbers = list(range(10))
    record.readers = [
        Readers("callback", [numbers]),
        Readers("queue group", [numbers[::2], numbers[1::2]]),
    ]
    counts = dict.fromkeys(library.Stats.__dataclass_fields__, 0)
    record.stats = library.Stats(**{**counts, "accepted": 10, "sent": 10, "reconnects": 2})
    return record


def changed(record: Record, **counts: Any) -> Record:
    assert record.stats is not None
    values = {name: getattr(record.stats, name) for name in record.stats.__dataclass_fields__}
    record.stats = library.Stats(**{**values, **counts})
    return record


def test_no_fault() -> None:
    assert books.faults(well(), False) == []
    assert "PASSED" in books.verdict([])
    assert "order kept" in books.as_text(well())


def test_a_lost_message_is_a_fault_unless_it_is_uncertain() -> None:
    record = well()
    record.readers[0].members[0].remove(5)
    (fault,) = books.faults(record, False)
    assert fault == "callback: 1 lost, the first is number 5"
    assert books.faults(changed(record, sent=9, uncertain=1), False) == []
    assert "uncertain" in books.faults(record, True)[0]


def test_a_doubled_message_is_a_fault_unless_at_least_once() -> None:
    record = well()
    record.readers[0].members[0].append(5)
    assert books.faults(record, False)[0] == "callback: 1 message came twice"
    assert books.faults(record, True) == []


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_group_misses_at_a_killed_server_is_told_and_not_judged(keep: bool) -> None:
    record = well()
    record.readers[1].members[0].remove(4)
    assert books.faults(record, keep) == ["queue group: 1 lost, the first is number 4"]
    record.shadows.append(range(3, 5))
    assert books.faults(record, keep) == []
    assert "5 delivered, 1 missing" in books.as_text(record)
    assert "1 of these given by the servers to members at a killed one" in books.as_text(record)
    assert books.as_dict(record)["readers"]["queue group"]["missing_at_killed_server"] == 1
    record.readers[0].members[0].remove(4)
    assert books.faults(record, keep) == ["callback: 1 lost, the first is number 4"]


def test_disorder_is_a_fault_but_not_of_a_group() -> None:
    record = well()
    for reader in record.readers:
        reader.members[0].reverse()
    assert books.faults(record, False) == ["callback: the order was not kept"]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"sent": 9}, "do not close"),
        ({"sent": 9, "dropped": 1}, "1 dropped"),
        ({"sent": 9, "buffered": 1}, "1 never sent"),
        ({"reconnects": 1}, "two returns"),
    ],
)
def test_books_that_are_not_as_promised(counts: dict[str, int], said: str) -> None:
    (fault,) = books.faults(changed(well(), **counts), False)
    assert said in fault
    assert fault in books.verdict([fault])


def test_a_demonstration_that_never_ended() -> None:
    assert books.faults(Record(), False) == ["the application never came to its end"]


def test_a_server_that_cannot_be_found(tmp_path: Path) -> None:
    done = gnats("demo", *FAST, status=1, GNATS_SERVER_BIN="no-such-program")
    assert "no-such-program" in done.err
