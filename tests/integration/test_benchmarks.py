"""The benchmarks run, verify the books of every peer, and can be published."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import documents
from benchmarks.delay import Delay
from benchmarks.load import Load, drive

ROOT = Path(__file__).parents[2]
WORKS = "callers,batches,latency,processes"


def measure(directory: Path, works: str) -> dict[str, Any]:
    """Run the quick benchmarks in a process, as people do, and return their data."""
    file = directory / "data.json"
    arguments = ["--quick", "--only", works, "--json", str(file), "--charts", str(directory)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    data: dict[str, Any] = json.loads(file.read_text())
    return data


def check(data: dict[str, Any]) -> None:
    """Everybody charged somebody, without errors, and the books agree."""
    assert data["runs_with_books_that_agree"] == len(data["runs"]) + 2 * bool(
        data["latency_rounds_ms"]
    )
    assert data["books_that_are_off"] == data["failed"] == []
    assert all(run["charges_per_second"] > 0 and not run["errors"] for run in data["runs"])
    assert data["machine"]["mongod"]
    assert data["machine"]["commit"]


def test_a_work_can_be_measured_alone(tmp_path: Path) -> None:
    """The data has the figure, the machine and the commit."""
    data = measure(tmp_path, "latency")
    assert len(data["latency_rounds_ms"]) == 1
    assert [figure["what"] for figure in data["figures"]] == ["median latency, times that by hand"]
    check(data)


@pytest.mark.thorough
def test_a_whole_run_can_be_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of both READMEs, the data and the charts come from one run."""
    data = measure(tmp_path, WORKS)
    check(data)
    networks = {
        (run["members"], run["delay_ms"]) for run in data["runs"] if run["work"] == "callers"
    }
    assert networks == {(1, 0.0), (1, 1.0), (3, 0.0), (3, 1.0)}
    peers = {run["kind"] for run in data["runs"]}
    assert {"credit_mongo", "a transaction a charge", "Beanie", "batches by hand"} <= peers

    here = tmp_path / "benchmarks"
    here.mkdir()
    for name in ("README.md", "benchmarks/README.md"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(documents, "_ROOT", tmp_path)
    monkeypatch.setattr(documents, "_HERE", here)
    monkeypatch.setattr(documents, "_DATA", here / "results.json")
    documents.publish(data)
    assert json.loads((here / "results.json").read_text(encoding="utf-8")) == data
    for chart in ("results.png", "results-p99.png"):
        assert (here / chart).read_bytes().startswith(b"\x89PNG")
    short, long = (
        (tmp_path / name).read_text(encoding="utf-8")
        for name in ("README.md", "benchmarks/README.md")
    )
    assert "| 64 callers, 1000 users, 3 members | " in short
    assert "| 64, 3 members, 1 ms of delay | " in long
    assert data["machine"]["commit"] in short
    assert data["machine"]["commit"] in long
    documents.publish(data)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == short


def test_a_table_goes_between_its_marks_and_nowhere_else() -> None:
    """Publishing again replaces it. A page that has lost a mark is not written."""
    page = "a\n<!-- make bench: begin -->\nold\n<!-- make bench: end -->\nb\n"
    once = documents.with_table(page, "new")
    assert once == page.replace("old", "new")
    assert documents.with_table(once, "new") == once
    for lost in ("<!-- make bench: begin -->\n", "<!-- make bench: end -->\n"):
        with pytest.raises(ValueError, match="make bench"):
            documents.with_table(page.replace(lost, ""), "new")


async def test_callers_that_wait_for_their_turn_charge_nobody_once_the_load_ends() -> None:
    """They count neither as errors nor as charges that may have happened."""
    under_way: set[str] = set()
    most = 0

    async def charge(_user_id: str, _cost: int, key: str) -> None:
        nonlocal most
        under_way.add(key)
        most = max(most, len(under_way))
        await asyncio.sleep(0.001)
        under_way.remove(key)

    load = Load(callers=50, users=("u",), seconds=0.1, warm_up_seconds=0.0)
    outcome = await drive(charge, load, at_a_time=5)
    assert most == 5
    assert not under_way
    assert outcome.charges > 50
    assert (outcome.errors, outcome.unknown) == ({}, {})


async def test_the_delay_is_what_it_says_in_each_direction() -> None:
    """Data arrives whole, in order, and not before its time."""
    arrived: list[tuple[bytes, float]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.readexactly(4):
            arrived.append((data, time.monotonic()))
            writer.write(data)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Delay(20.0, [port]) as delay:
            reader, writer = await asyncio.open_connection("127.0.0.1", delay.ports[0])
            for word in (b"one.", b"two."):
                began = time.monotonic()
                writer.write(word)
                assert await reader.readexactly(4) == word
                data, moment = arrived[-1]
                assert data == word
                assert moment - began >= 0.02
                assert time.monotonic() - moment >= 0.02
            writer.close()
