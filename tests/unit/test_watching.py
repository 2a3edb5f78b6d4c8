"""Counts of the last minute, and the page that shows them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone

from rich.console import Console

from credit_mongo.cli.watch_page import page_of
from credit_mongo.maintenance.status import Member
from credit_mongo.maintenance.watching.servers import Latencies, OpenTransaction
from credit_mongo.maintenance.watching.watcher import Look
from credit_mongo.maintenance.watching.window import Window

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
HOSTILE = "[red]ann\x1b[2J\n"


def test_rates_are_those_of_full_seconds() -> None:
    """The present second has only begun. A window that has just opened divides by what it saw."""
    window = Window(100.0)
    for second, charges in ((100, 2), (101, 4), (102, 50)):
        for _ in range(charges):
            window.add(second + 0.5, "charge", "post", "ann", None)
    assert window.done_a_second(102.6, 5) == {"charge": 3.0}
    assert window.done_a_second(108.0, 5) == {}
    assert window.done_a_second(107.9, 5) == {"charge": 10.0}
    assert window.history(103.0, "charge")[-4:] == [0, 2, 4, 50]
    assert len(window.history(103.0, "charge")) == 60


def test_sums_forget_what_is_older_than_a_minute() -> None:
    """After any sequence they are what counting anew would give."""
    chance = random.Random(7)
    window, events = Window(0.0), list[tuple[int, str, str | None]]()
    now = 0.0
    for _ in range(3000):
        now += chance.choice((0.0, 0.01, 0.3, 2.0))
        user, code = f"user-{chance.randrange(20)}", chance.choice((None, None, "A", "B"))
        window.add(now, "charge", "post", user, code)
        events.append((int(now), user, code))
        if chance.random() < 0.05:
            recent = [each for each in events if each[0] >= int(now) - 60]
            users = Counter(user for _, user, _ in recent)
            assert dict(window.busiest_users(now, 100)) == users
            assert window.refusals(now) == Counter(code for *_, code in recent if code)
    assert window.busiest_users(now + 1000, 10) == []
    assert window.refusals(now + 1000) == {}


def drawn(look: Look, width: int) -> str:
    """A page as text."""
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(page_of(look, "app", width))
    return captured.get()


LOOK = Look(
    NOON,
    charges_per_second=1234.5,
    operations_per_second={"capture": 1.0, "charge": 1234.5},
    refusals_per_second={},
    refusals={"INSUFFICIENT_CREDITS": 12},
    charges_by_second=[*([0] * 58), 5, 10],
    busiest_users=[(HOSTILE, 12_345), *((f"user-{n}@example.com" * 3, n) for n in range(9))],
    busiest_actions=[("generate-post", 12_000)],
    latencies=Latencies(0.4, 1.2, None, 3.25, 23, 4),
    members=(Member("a:1", "PRIMARY", 0.0), Member("b:2", "SECONDARY", 42.0)),
    open_transactions=(OpenTransaction(2.5, "worker", "10.0.0.7:5", is_idle=True),),
    active_holds=7,
    ttl_lag_seconds=12.0,
    unseen={"latencies": "needs the built-in role clusterMonitor"},
)


def test_the_page_shows_what_was_seen_and_says_what_was_not() -> None:
    """Names of the database's are not markup, and no control character reaches the terminal."""
    page = drawn(LOOK, 100)
    for expected in (
        *("1,234/s", "▄█", "charge 1,234/s, capture 1.0/s", "none in the last 5 seconds"),
        *("reads 0.4 ms, writes 1.2 ms, transactions 3.2 ms", "23 open, 4 active", "7 active"),
        *("a:1 PRIMARY, b:2 SECONDARY 42 s behind", "replication 42 s, TTL 12 s"),
        *("2.5 s  transaction open, nothing under way: worker, 10.0.0.7:5", "generate-post"),
        "latencies: needs the built-in role clusterMonitor",
    ):
        assert expected in page, expected
    assert "[red]ann" in page
    assert "\x1b" not in page


def test_a_narrow_terminal_cuts_names_and_never_counts() -> None:
    """No line is longer than the terminal."""
    for width in (60, 80, 200):
        page = drawn(LOOK, width)
        assert max(len(line) for line in page.splitlines()) <= width
        assert "12,345" in page
        assert "12,000" in page


def test_at_80_columns_the_charges_of_a_whole_minute_take_one_line() -> None:
    """The latest seconds stay. Lines below don't jump when the rate gets another digit."""
    for rate in (0.4, 99.0, 9_999.0, 123_456.0):
        busy = replace(LOOK, charges_per_second=rate, charges_by_second=[*([9] * 59), 10])
        lines = drawn(busy, 80).splitlines()
        [charges] = [number for number, line in enumerate(lines) if line.startswith("charges")]
        assert lines[charges].rstrip().endswith("█")
        assert lines[charges + 1].startswith("operations")


def test_a_low_terminal_shows_what_is_wrong() -> None:
    """It cuts the end of the page, which has the busiest users."""
    lines = drawn(LOOK, 80).splitlines()
    [warning] = [number for number, line in enumerate(lines) if "clusterMonitor" in line]
    [busiest] = [number for number, line in enumerate(lines) if line.startswith("users")]
    assert warning < busiest


def test_a_page_without_anything_seen_says_why() -> None:
    """As between two primaries."""
    page = drawn(Look(NOON, unseen={"servers": "no primary answers. Waiting for one"}), 80)
    assert "servers: no primary answers. Waiting for one" in page
