"""``credit-mongo report``: its numbers are those of the rows, its files whole, its text safe."""

from __future__ import annotations

import asyncio
import json
import random
import re
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio
from bson import Int64, ObjectId

from credit_mongo.cli import main
from credit_mongo.cli.usage_chart import draw_over_time, draw_report
from credit_mongo.cli.usage_page import write_page
from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.usage.measuring import usage_of
from credit_mongo.maintenance.usage.periods import parts_of, period_before, width_for, zone_of
from credit_mongo.maintenance.usage.results import Sums, Usage, UsageBefore, UsedBy, UsedIn
from credit_mongo.maintenance.usage.words import Scale, change, compact, fold
from tests.integration.commands import run_program
from tests.integration.promises import Client, Database, Row, failing, with_options

UTC = timezone.utc
UNITS = Scale(0)
START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 2, 1, tzinfo=UTC)
OPERATIONS = ("create_user", "grant", "charge", "charge", "charge", "refund", "upgrade_tier")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "$x^2$ and $\\frac{1}{2}$",
    "W" * 255,
    "\u202eevil",
    "张三",
    "مرحبا بالعالم",
    "🚀 launch",
    "&amp;",
)
Call: TypeAlias = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest_asyncio.fixture
async def call(
    replica_set_uri: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Calls the command on the test's database: exit code, stdout, stderr."""
    if "users" not in await database.list_collection_names():
        await database.create_collection("users")

    async def call(*arguments: str, uri: str = replica_set_uri) -> tuple[int, str, str]:
        where = ("--uri", uri, "--database", database.name)
        code = await asyncio.to_thread(main, ("report", *where, *arguments))
        output, errors = capsys.readouterr()
        if code:
            assert (code, output, errors.count("\n")) == (2, "", 1), errors
            assert errors.startswith("error: ")
        return code, output, errors

    return call


def transactions(seed: int, users: Iterable[str], actions: Iterable[str], number: int) -> list[Row]:
    """Some of each kind, in and around the period, and at its very ends."""
    chance = random.Random(seed)
    users, actions = list(users), list(actions)
    made: list[Row] = []
    for _ in range(number):
        operation = chance.choice(OPERATIONS)
        amount = chance.randint(0, 500)
        if operation == "charge" or (operation == "upgrade_tier" and chance.random() < 0.5):
            amount = -amount
        minutes = chance.randint(-5 * 1440, 36 * 1440)
        made.append(
            {
                "_id": ObjectId(),
                "userId": chance.choice(users),
                "operation": operation,
                "action": chance.choice(actions),
                "amount": Int64(amount),
                "tier": chance.choice(["free", "premium", None]),
                "createdAt": START + timedelta(minutes=minutes),
            }
        )
    made[0]["createdAt"], made[1]["createdAt"] = START, END - timedelta(milliseconds=1)
    made[2]["createdAt"], made[3]["createdAt"] = END, START - timedelta(milliseconds=1)
    return made


async def keep(database: Database, made: list[Row], *, archived: int = 0) -> None:
    """As the ledger keeps them, and as the archive does; with their audit rows."""
    audits = [
        {
            **{name: row[name] for name in ("_id", "userId", "operation", "action", "createdAt")},
            "status": "success",
            "details": {"amount": row["amount"], "tier": row["tier"]},
        }
        for row in made
    ]
    refused = {**audits[0], "_id": ObjectId(), "status": "failed", "details": {"code": "X"}}
    plain = [{name: value for name, value in row.items() if name != "tier"} for row in made]
    for kind, documents in (("transactions", plain), ("audit_logs", [*audits, refused])):
        for name, part in (
            (f"{kind}_archive", documents[:archived]),
            (kind, documents[archived:]),
        ):
            if part:
                await database[name].insert_many(part)


def expected(made: list[Row], name: str, operations: tuple[str, ...], top: int) -> list[Any]:
    """Names with amounts and numbers, the largest first, from the rows themselves."""
    amounts: dict[Any, list[int]] = defaultdict(lambda: [0, 0])
    for row in made:
        if START <= row["createdAt"] < END and row["operation"] in operations and row["amount"]:
            amounts[row[name]][0] += abs(row["amount"])
            amounts[row[name]][1] += 1
    ordered = sorted(amounts.items(), key=lambda item: (-item[1][0], str(item[0])))
    return [(key, amount, number) for key, (amount, number) in ordered[:top]]


def listed(places: Iterable[UsedBy]) -> list[Any]:
    return [(each.name, each.amount, each.transactions) for each in places]


# The numbers


@pytest.mark.drivers("pymongo", "motor")
@pytest.mark.parametrize("archived", [0, 150, 400])
async def test_the_numbers_are_those_of_the_rows(database: Database, archived: int) -> None:
    """Over time, by action, by tier, by user, wherever the rows are."""
    users = [f"user-{number}" for number in range(30)]
    made = transactions(archived, users, [f"action-{n}" for n in range(15)], 400)
    await keep(database, made, archived=archived)
    usage = await usage_of(database, START, END, places=5)
    within = [row for row in made if START <= row["createdAt"] < END]

    def total(*operations: str, sign: int = 0, of: Iterable[Row] = within) -> int:
        amounts = [row["amount"] for row in of if row["operation"] in operations]
        return sum(abs(amount) for amount in amounts if amount * sign >= 0)

    def sums(of: list[Row]) -> Sums:
        return Sums(
            granted=total("create_user", "grant", of=of),
            spent=total("charge", of=of),
            refunded=total("refund", of=of),
            tier_changes_added=total("upgrade_tier", sign=1, of=of),
            tier_changes_taken=total("upgrade_tier", sign=-1, of=of),
        )

    assert usage.totals == sums(within)
    assert (usage.transactions, usage.width) == (len(within), "day")
    assert [each.start.day for each in usage.over_time] == list(range(1, 32))
    for each in usage.over_time:
        assert each.sums == sums([row for row in within if row["createdAt"].day == each.start.day])
    spent = usage.totals.spent
    for places, others, name in (
        (usage.spent_by_action, usage.spent_by_other_actions, "action"),
        (usage.spent_by_tier, usage.spent_by_other_tiers, "tier"),
        (usage.top_spenders, usage.spent_by_other_users, "userId"),
    ):
        assert listed(places) == expected(made, name, ("charge",), 5)
        assert others == spent - sum(each.amount for each in places)
    granting = ("grant", "create_user")
    assert listed(usage.granted_by_action) == expected(made, "action", granting, 5)
    assert usage.active_users == len({r["userId"] for r in within if r["operation"] == "charge"})
    refunded = {each.name: each.refunded for each in usage.top_spenders}
    for user, amount in refunded.items():
        assert amount == total("refund", of=[row for row in within if row["userId"] == user])


async def test_sums_are_exact_beyond_64_bits(database: Database) -> None:
    """Amounts of 10^18 and one, ten and more of them."""
    made = transactions(1, ["ada"], ["x"], 30)
    for row in made:
        row |= {"operation": "charge", "amount": Int64(-(10**18) - 1), "createdAt": START}
    await keep(database, made, archived=10)
    usage = await usage_of(database, START, END)
    exact = 30 * (10**18 + 1)
    assert usage.totals.spent == usage.top_spenders[0].amount == exact
    assert [each.amount for each in usage.spent_by_action] == [exact]
    page = write_page(usage, "app", draw_over_time(usage, UNITS), UNITS)
    assert f"{exact:,}" in page


async def test_rows_of_other_software(database: Database) -> None:
    """The Credit SDK's say not what they are; what has no whole amount is left out."""
    base = {"userId": "ada", "action": "x", "createdAt": START}
    await database["transactions"].insert_many(
        [
            {**base, "amount": -7},
            {**base, "amount": Int64(5)},
            {**base, "amount": 3, "operation": "correction"},
            {**base, "amount": -2, "operation": {"of": "nobody"}},
            {**base, "amount": 1.5, "operation": "grant"},
            {**base, "amount": "9", "operation": "grant"},
            {**base, "amount": float("nan"), "operation": "charge"},
            # In no period at all, and in another than this one.
            {**base, "amount": 4, "createdAt": "2026-01-01"},
            {**base, "amount": 4, "createdAt": None},
            {**base, "amount": 1.5, "createdAt": END},
            {**base, "amount": 1.5, "createdAt": START - timedelta(days=1)},
        ]
    )
    usage = await usage_of(database, START, END)
    assert usage.totals == Sums(granted=5, spent=7, corrections_added=3, other_taken=2)
    assert (usage.transactions, usage.left_out) == (4, 5)
    page = write_page(usage, "app", draw_over_time(usage, UNITS), UNITS)
    assert "5 rows are left out" in page
    assert (usage.spent_by_tier, usage.spent_by_other_tiers) == ((), 7)
    assert listed(usage.top_spenders) == [("ada", 7, 1)]


async def test_a_refund_counts_for_what_its_charge_was(database: Database) -> None:
    """Its own action is why it was given back; the charge may be archived, or of a time before."""
    made = [
        row | {"operation": "charge", "amount": Int64(-100), "action": action, "tier": tier}
        for row, action, tier in zip(
            transactions(1, ["ada", "bob"], ["x"], 4),
            ("chat", "chat", "draw", "draw"),
            ("free", "gold", None, "gold"),
            strict=True,
        )
    ]
    moments = (START, START, START + timedelta(days=1), START - timedelta(days=9))
    for row, moment in zip(made, moments, strict=True):
        row["createdAt"] = moment
    refunds = [
        {
            **made[0],
            "_id": ObjectId(),
            "operation": "refund",
            "action": "support",
            "amount": Int64(amount),
            "createdAt": END - timedelta(days=1),
            "tier": None,
            **({} if of is None else {"refundOf": of}),
        }
        for amount, of in (
            (1, made[0]["_id"]),
            (2, made[1]["_id"]),
            (4, made[2]["_id"]),
            (8, made[3]["_id"]),
            (16, None),
            (32, ObjectId()),
        )
    ]
    refunds[4]["action"] = "chat"
    await keep(database, made, archived=2)
    await keep(database, refunds[:3], archived=3)
    await keep(database, refunds[3:])
    usage = await usage_of(database, START, END)
    assert (usage.totals.spent, usage.totals.refunded, usage.totals.net_spent) == (300, 63, 237)
    assert {(b.name, b.amount, b.refunded, b.net) for b in usage.spent_by_action} == {
        ("chat", 200, 19, 181),
        ("draw", 100, 12, 88),
    }
    assert usage.refunded_of_other_actions == 32
    assert {(b.name, b.amount, b.refunded) for b in usage.spent_by_tier} == {
        ("free", 100, 1),
        ("gold", 100, 10),
        (None, 100, 4),
    }
    assert usage.refunded_of_other_tiers == 48
    assert usage.before.totals == Sums(spent=100)
    assert (usage.before.active_users, usage.before.transactions) == (1, 1)
    cells = Page(write_page(usage, "app", draw_over_time(usage, UNITS), UNITS)).cells
    chat = cells.index("chat")
    assert cells[chat + 1 : chat + 4] == ["200", "19", "181"]


async def test_files_of_the_archive_are_told(database: Database, tmp_path: Path) -> None:
    """They are not counted, and the page says so."""
    segment = {"place": "files", "seq": Int64(3), "balance": Int64(1), "createdAt": START}
    await database["archive_borders"].insert_one({"_id": "ada", "segments": [segment]})
    usage = await usage_of(database, START, END)
    assert usage.has_files is True
    assert "archived to files" in write_page(usage, "app", draw_over_time(usage, UNITS), UNITS)
    later = await usage_of(database, START + timedelta(days=1), END)
    assert later.has_files is False


@pytest.mark.parametrize(
    ("days", "width", "parts"),
    [
        (1, "hour", 24),
        (31, "day", 31),
        (100, "week", 16),
        (3 * 365, "month", 36),
        (36500, "year", 100),
    ],
)
async def test_the_period_is_divided_as_it_suits(
    database: Database, days: int, width: str, parts: int
) -> None:
    """Without a gap, and the server divides as the page does."""
    end = START + timedelta(days=days)
    made = transactions(2, ["ada"], ["x"], 60)
    for number, row in enumerate(made):
        row["createdAt"] = START + number * timedelta(days=days) / 60
    await keep(database, made)
    usage = await usage_of(database, START, end)
    assert (usage.width, usage.transactions) == (width, 60)
    assert len(usage.over_time) == pytest.approx(parts, abs=1)
    assert sum(each.sums.spent for each in usage.over_time) == usage.totals.spent > 0


async def test_days_and_months_are_those_of_the_time_zone(
    call: Call, database: Database, tmp_path: Path
) -> None:
    """The day on which summer time begins has 23 hours, and the one on which it ends 25."""
    berlin = zone_of("Europe/Berlin")
    base = {"userId": "ada", "action": "x", "operation": "charge"}
    moments = (
        ("2026-03-28T22:59:59", "2026-03-28"),
        ("2026-03-28T23:00:00", "2026-03-29"),
        ("2026-03-29T21:59:59", "2026-03-29"),
        ("2026-03-29T22:00:00", "2026-03-30"),
    )
    for moment, _ in moments:
        created = datetime.fromisoformat(f"{moment}+00:00")
        await database["transactions"].insert_one({**base, "amount": -1, "createdAt": created})
    page = tmp_path / "usage.html"
    period = ("--from", "2026-03-01", "--to", "2026-04-01", "--timezone", "Europe/Berlin")
    _, output, _ = await call("--json", *period)
    found = json.loads(output)
    assert (found["timezone"], found["totals"]["spent"]) == ("Europe/Berlin", 4)
    assert (found["start"], found["end"]) == (
        "2026-02-28T23:00:00.000Z",
        "2026-03-31T22:00:00.000Z",
    )
    assert (found["before"]["start"], found["before"]["end"]) == (
        "2026-01-31T23:00:00.000Z",
        found["start"],
    )
    spent: dict[str, int] = defaultdict(int)
    for each in found["over_time"]:
        start = datetime.fromisoformat(each["start"].replace("Z", "+00:00"))
        spent[str(start.astimezone(berlin).date())] += each["spent"]
    assert len(spent) == len(found["over_time"]) == 31
    assert {day: number for day, number in spent.items() if number} == {
        "2026-03-28": 1,
        "2026-03-29": 2,
        "2026-03-30": 1,
    }
    await call(str(page), *period)
    text = page.read_text(encoding="utf-8")
    assert "2026-03-01 to 2026-03-31 (Europe/Berlin)" in text
    assert "2026-02-01 to 2026-02-28 (Europe/Berlin)" in text


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Havana", "Asia/Kathmandu"])
@pytest.mark.parametrize("days", [1, 3, 40, 400, 2000, 20000])
def test_the_parts_of_a_period_have_neither_gap_nor_overlap(name: str, days: int) -> None:
    """The first begins at or before the period; summer time comes and goes."""
    zone = zone_of(name)
    for start in (START, datetime(2026, 3, 8, 4, 30, tzinfo=UTC)):
        end = start + timedelta(days=days)
        width = width_for(start, end)
        moments = list(parts_of(start, end, width, zone))
        assert moments == sorted(set(moments))
        assert moments[0] <= start < moments[1] or len(moments) == 1
        assert moments[-1] < end
        local = [each.astimezone(zone) for each in moments]
        if width == "day":
            # Where summer time begins at midnight, the day begins at one.
            assert {each.hour for each in local} <= {0, 1}
            dates = [each.date() for each in local]
            assert [after - day for day, after in pairwise(dates)] == [timedelta(days=1)] * (
                len(dates) - 1
            )
        if width in ("month", "year"):
            assert {each.day for each in local} == {1}


def test_the_period_before_is_of_whole_months_or_days_where_the_period_is() -> None:
    """February is compared with January, and an hour with the hour before."""
    for name, start, end, before in (
        ("UTC", "2026-02-01", "2026-03-01", "2026-01-01"),
        ("UTC", "2026-01-01", "2026-04-01", "2025-10-01"),
        ("Europe/Berlin", "2026-03-29", "2026-03-30", "2026-03-28"),
        ("Europe/Berlin", "2026-10-26", "2026-10-28", "2026-10-24"),
        ("UTC", "2026-02-01T01:00", "2026-02-01T02:00", "2026-02-01T00:00"),
        ("UTC", "0002-01-02", "0002-03-02", "0002-01-01"),
        ("Asia/Tokyo", "0002-02-01", "0099-03-01", "0002-01-01T09:18:59"),
    ):
        zone = zone_of(name)
        begin, until = (
            datetime.fromisoformat(each).replace(tzinfo=zone).astimezone(UTC)
            for each in (start, end)
        )
        found = period_before(begin, until, zone)
        assert found == datetime.fromisoformat(before).replace(tzinfo=zone), (name, start)


async def test_bad_periods(database: Database) -> None:
    """Typed errors that name what is wrong."""
    for start, end, field in (
        (END, START, "end"),
        (START, START, "end"),
        (START.replace(year=1800), END, "end"),
        (START.replace(year=9990), END.replace(year=9999), "end"),
        (START.replace(tzinfo=None), END, "start"),
        (START.replace(year=1), START.replace(year=2), "start"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await usage_of(database, start, end)
        assert caught.value.field == field
    for places in (0, 101):
        with pytest.raises(InvalidRequestError, match="places"):
            await usage_of(database, START, END, places=places)


# The page and the picture


class Page(HTMLParser):
    """What a browser would make of a page: tags, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self._is_in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag in ("td", "th"):
            self.cells.append("")
            self._is_in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._is_in_cell = False

    def handle_data(self, data: str) -> None:
        if self._is_in_cell:
            self.cells[-1] += data


async def test_the_page_has_the_numbers_and_loads_nothing(
    call: Call, database: Database, tmp_path: Path
) -> None:
    """All names as they are, whatever they contain; no script, no address."""
    made = transactions(3, HOSTILE, HOSTILE, 300)
    await keep(database, made, archived=100)
    page, png = tmp_path / "usage.html", tmp_path / "usage.png"
    period = ("--from", "2026-01-01", "--to", "2026-02-01")
    code, output, errors = await call(str(page), "--png", str(png), *period)
    assert (code, errors) == (0, "")
    assert f"written: {page}" in output
    usage = await usage_of(database, START, END)
    found = Page(page.read_text(encoding="utf-8"))
    for amount in (usage.totals.granted, usage.totals.spent, usage.totals.refunded):
        assert f"{amount:,}" in found.cells
    for places in (usage.spent_by_action, usage.top_spenders, usage.granted_by_action):
        for each in places:
            assert each.name is not None
            at = found.cells.index(each.name.replace("\u202e", "\\u202e"))
            assert at >= 0
            assert f"{each.amount:,}" in found.cells
    assert not found.tags & {"script", "img", "iframe", "link", "object", "embed", "image"}
    for name, value in found.attributes:
        assert not name.startswith("on")
        # References are to what is in the page itself.
        if name in ("src", "href", "xlink:href"):
            assert (value or "").startswith("#")
    assert "\u202e" not in page.read_text(encoding="utf-8")
    assert png.read_bytes().startswith(b"\x89PNG")


async def test_json_has_the_same_numbers(call: Call, database: Database) -> None:
    """And needs no file."""
    await keep(database, transactions(4, ["ada"], ["x"], 50))
    _, output, _ = await call("--json", "--from", "2026-01-01", "--to", "2026-02-01", "--top", "3")
    found = json.loads(output)
    usage = await usage_of(database, START, END, places=3)
    assert found["totals"]["spent"] == usage.totals.spent > 0
    assert found["top_spenders"][0]["amount"] == usage.top_spenders[0].amount
    assert found["over_time"][0]["start"] == "2026-01-01T00:00:00.000Z"
    assert len(found["over_time"]) == 31


async def test_a_period_in_which_nothing_happened(call: Call, tmp_path: Path) -> None:
    """Is said so, and is no error."""
    page, png = tmp_path / "usage.html", tmp_path / "usage.png"
    code, output, _ = await call(str(page), "--png", str(png), "--to", "2000-01-01")
    assert code == 0
    assert "nothing happened" in output
    assert "Nothing happened in this period" in page.read_text(encoding="utf-8")
    assert png.stat().st_size > 1000
    found = Page(page.read_text(encoding="utf-8"))
    assert "svg" not in found.tags


async def test_amounts_are_in_credits_as_well(
    call: Call, database: Database, tmp_path: Path
) -> None:
    """With a configuration of decimal places."""
    made = transactions(5, ["ada"], ["x"], 9)
    for row in made:
        row |= {"operation": "charge", "amount": Int64(-13505), "createdAt": START}
    await keep(database, made)
    config, page = tmp_path / "config.json", tmp_path / "usage.html"
    config.write_text('{"costs": {}, "decimalPlaces": 2}')
    period = ("--from", "2026-01-01", "--to", "2026-02-01", "--config", str(config))
    _, output, _ = await call(str(page), *period)
    assert "spent\t121545\t1215.45\t0\t0.00\t\n" in output
    cells = Page(page.read_text(encoding="utf-8")).cells
    # In the totals, as spent and as net spend, and in the lists by action and by user.
    assert cells.count("1,215.45") == 4
    assert "121,545" not in cells


def drawn(name: str, scale: int, actions: int, days: int, *, width: int = 0) -> Usage:
    """A usage to be drawn."""
    names = [f"{name}{number}".ljust(width, "W") for number in range(actions)]
    places = tuple(UsedBy(each, scale * (actions - n), 1) for n, each in enumerate(names))
    end = START + timedelta(days=days)
    parts = tuple(
        UsedIn(START + timedelta(days=day), Sums(granted=scale, spent=scale * day))
        for day in range(days)
    )
    totals = Sums(granted=scale * days, spent=scale * actions**2, corrections_taken=scale)
    return Usage(
        start=START,
        end=end,
        timezone="UTC",
        width=width_for(START, end),
        transactions=9 if actions else 0,
        active_users=1,
        totals=totals,
        before=UsageBefore(START - (end - START), START, 9, 2, totals),
        over_time=parts,
        spent_by_action=places,
        spent_by_other_actions=0,
        refunded_of_other_actions=0,
        granted_by_action=places,
        granted_by_other_actions=scale,
        spent_by_tier=places,
        spent_by_other_tiers=0,
        refunded_of_other_tiers=scale,
        top_spenders=places,
        spent_by_other_users=scale * 1000,
        refunded_to_other_users=0,
        left_out=0,
        has_files=False,
    )


@pytest.mark.parametrize(
    "usage",
    [
        drawn("x", 1, 1, 1),
        drawn("x", 10**15, 40, 92, width=255),
        drawn("x", 10**24, 100, 3),
        drawn("\U0001f525", 1, 3, 3),
        drawn("$\\frac{", 1, 3, 3),
        drawn("x", 0, 0, 1),
    ],
    ids=["one", "many", "huge", "emoji", "mathematics", "nothing"],
)
@pytest.mark.cases(2)
def test_whatever_there_is_can_be_drawn(usage: Usage) -> None:
    """Without a warning (of a missing glyph, say), which would fail the test."""
    png = draw_report(usage, "app", UNITS)
    width, height = struct.unpack(">II", png[16:24])
    assert width == 2100
    assert 1000 < height < 16000 if usage.transactions else height < 300
    svg = draw_over_time(usage, UNITS)
    assert svg.startswith("<svg")
    assert "<text" not in svg


def test_words() -> None:
    """Numbers to the third digit, names to a width."""
    numbers = [0, 7, 999_999, 999_999_999, 12_345_678, 10**15, 44_112 * 10**15, 10**24]
    assert [compact(number) for number in numbers] == [
        *("0", "7", "1 million", "1 billion", "12.3 million"),
        *("1 quadrillion", "44.1 quintillion", "1,000 sextillion"),
    ]
    assert fold("a" * 99 + "b" * 99, 10) == "aaaaa…bbbb"
    assert fold("a" * 15 + "b" * 15, 10, 2) == "aaaaaaaaaa\n…bbbbbbbbb"
    assert fold("张三李四王五", 7) == "张…五"
    assert fold("张三李四", 4, 2) == "张三\n李四"
    assert fold("short", 5) == "short"
    changes = [change(110, 100), change(99, 100), change(100, 100), change(5000, 100), change(1, 0)]
    assert changes == ["+10 %", "-1 %", "0 %", "× 50", ""]  # noqa: RUF001


# Bad input


async def test_bad_input_leaves_nothing_behind(
    call: Call, client: Client, replica_set_uri: str, tmp_path: Path
) -> None:
    """One line, exit code 2, and no file, whole or half."""
    page = str(tmp_path / "usage.html")
    for wrong in (
        ("--from", "2026-02-01", "--to", "2026-01-01"),
        ("--from", "2026-02-30"),
        ("--from", "soon"),
        ("--from", "1800-01-01"),
        ("--to", "0001-01-02"),
        ("--top", "0"),
        ("--top", "101"),
        ("--top", "-1"),
        ("--png", page),
        ("--png", str(tmp_path)),
        ("--png", str(tmp_path / "no" / "such.png")),
        ("--png", "/dev/null"),
        ("--config", "/no/such/file"),
        ("--timezone", "Mars/Olympus"),
        ("--timezone", "/etc/passwd"),
        ("--timezone", ""),
        ("--timezone", "Europe"),
        ("--timezone", "a\x00b"),
        ("extra",),
    ):
        await call(page, *wrong)
        assert names_in(tmp_path) == [], wrong
    uri = with_options(replica_set_uri, appname="no-rights")
    async with failing(client, "no-rights", failCommands=["aggregate"], errorCode=13):
        code, _, errors = await call(page, uri=uri)
    assert (code, "Unauthorized (code 13)" in errors) == (2, True)
    assert names_in(tmp_path) == []


def names_in(directory: Path) -> list[str]:
    """What is there."""
    return sorted(path.name for path in directory.iterdir())


async def test_a_file_that_is_there_stays(call: Call, tmp_path: Path) -> None:
    """Unless --force says otherwise; neither file is written then."""
    page, png = tmp_path / "usage.html", tmp_path / "usage.png"
    page.write_text("mine")
    code, _, errors = await call(str(page), "--png", str(png))
    assert (code, "--force" in errors, str(page) in errors) == (2, True, True)
    assert (page.read_text(), names_in(tmp_path)) == ("mine", [page.name])
    for wrong, named in (
        ((str(png), "--png", str(page)), page),
        ((str(tmp_path / "a" / "b"), "--png", str(png)), tmp_path / "a"),
    ):
        assert str(named) in (await call(*wrong))[2]
        assert names_in(tmp_path) == [page.name]
    code, _, _ = await call(str(page), "--png", str(png), "--force")
    assert code == 0
    assert re.match("<!DOCTYPE html>", page.read_text(encoding="utf-8"))
    assert names_in(tmp_path) == [page.name, png.name]


async def test_the_script_is_a_door_and_the_extra_is_asked_for(
    replica_set_uri: str, database: Database, tmp_path: Path
) -> None:
    """Without it, the command says what to install, and leaves no file."""
    await database.create_collection("users")
    page = tmp_path / "usage.html"
    arguments = (str(page), "--uri", replica_set_uri, "--database", database.name)
    without = "import sys; sys.modules['matplotlib'] = None; from credit_mongo.cli import main"
    program = ("-c", f"{without}; sys.exit(main())")
    code, output, errors = await run_program("report", *arguments, program=program)
    assert (code, output) == (2, "")
    assert errors == "error: matplotlib is missing: pip install 'credit-mongo[report]'\n"
    assert not page.exists()
    code, output, errors = await run_program(*arguments, program=("scripts/report.py",))
    assert (code, errors) == (0, "")
    assert page.exists()
