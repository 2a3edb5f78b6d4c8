"""What ``credit-mongo watch`` draws: a look, as a page for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from credit_mongo.maintenance.watching.servers import OpenTransaction
from credit_mongo.maintenance.watching.watcher import Look
from credit_mongo.printing import moment_to_seconds, printable

__all__ = ["page_of"]

_BARS: Final = " ▁▂▃▄▅▆▇█"
_GAP: Final = 2
_WIDEST_FACT: Final = len("connections")
_WIDEST_RATE: Final = len("9,999/s")
_ROUNDED_FROM: Final = 10
_SHORTEST_NAME: Final = 8
_LONGEST_NAME: Final = 36
_WORRYING_LAG_SECONDS: Final = 10.0
_WORRYING_TTL_SECONDS: Final = 180.0


def page_of(look: Look, database: str, width: int) -> RenderableType:
    """Draw a look for a terminal of ``width`` columns.

    Names come from the database, and are never taken for markup.
    """
    heading = Text.assemble(
        (printable(database), "bold"),
        f"  {moment_to_seconds(look.at)}",
        ("  Ctrl-C ends", "dim"),
    )
    parts: list[RenderableType] = [heading, Text("")]
    parts += [_facts(look, width), Text("")]
    if look.open_transactions:
        parts += [_transactions(look.open_transactions), Text("")]
    if look.unseen:
        parts += [*(_warning(name, why) for name, why in look.unseen.items()), Text("")]
    # Last, because a low terminal cuts the end.
    parts.append(_busiest(look, width))
    return Group(*parts)


def _facts(look: Look, width: int) -> Table:
    table = Table.grid(padding=(0, _GAP))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("charges", _charges(look, width - _WIDEST_FACT - 2 * _GAP))
    table.add_row("operations", _rates(look.operations_per_second))
    table.add_row("refusals", _rates(look.refusals_per_second))
    table.add_row("latency", _latency(look))
    table.add_row("connections", _connections(look))
    table.add_row("members", _members(look))
    table.add_row("behind", _lags(look))
    table.add_row("holds", _number(look.active_holds, "active"))
    return table


def _charges(look: Look, room: int) -> Text:
    """Draw the rate, and one bar for each of the last minute's seconds for which there is room."""
    if look.charges_per_second is None:
        return Text("-")
    text = Text(f"{look.charges_per_second:,.0f}/s", style="bold green")
    # The rate's own width changes; the bars stay where they are.
    seconds = look.charges_by_second[-max(room - _WIDEST_RATE - _GAP, 1) :]
    most = max(seconds, default=0)
    if most:
        steps = len(_BARS) - 1
        bars = "".join(_BARS[-(-steps * count // most)] for count in seconds)
        text.append(" " * max(_WIDEST_RATE + _GAP - len(text), 1))
        text.append(bars, style="green")
    return text


def _rates(rates: dict[str, float] | None) -> Text:
    if rates is None:
        return Text("-")
    named = sorted(rates.items(), key=lambda each: -each[1])
    shown = [f"{printable(name)} {_rate(rate)}/s" for name, rate in named]
    return Text(", ".join(shown) or "none in the last 5 seconds")


def _rate(rate: float) -> str:
    return f"{rate:,.1f}" if rate < _ROUNDED_FROM else f"{rate:,.0f}"


def _latency(look: Look) -> Text:
    found = look.latencies
    if found is None:
        return Text("-")
    shown = (
        f"{name} {milliseconds:,.1f} ms"
        for name, milliseconds in (
            ("reads", found.reads),
            ("writes", found.writes),
            ("transactions", found.transactions),
        )
        if milliseconds is not None
    )
    return Text(", ".join(shown) or "no operation since the last look")


def _connections(look: Look) -> Text:
    found = look.latencies
    return Text("-" if found is None else f"{found.connections:,} open, {found.active:,} active")


def _members(look: Look) -> Text:
    text = Text()
    for number, member in enumerate(look.members or ()):
        lag = member.lag_seconds
        behind = f" {lag:,.0f} s behind" if lag else ""
        is_fine = member.state in ("PRIMARY", "SECONDARY", "ARBITER", "member")
        is_late = (lag or 0) > _WORRYING_LAG_SECONDS
        text.append(", " if number else "")
        text.append(
            f"{member.host} {member.state}{behind}", style="" if is_fine and not is_late else "red"
        )
    return text or Text("-")


def _lags(look: Look) -> Text:
    lags = [each.lag_seconds for each in look.members or () if each.lag_seconds is not None]
    ttl = look.ttl_lag_seconds
    replication = f"replication {max(lags):,.0f} s" if lags else "replication -"
    text = Text(f"{replication}, ")
    text.append(
        "TTL -" if ttl is None else f"TTL {ttl:,.0f} s",
        style="red" if (ttl or 0) > _WORRYING_TTL_SECONDS else "",
    )
    return text


def _number(count: int | None, unit: str) -> Text:
    return Text("-" if count is None else f"{count:,} {unit}")


def _transactions(found: Sequence[OpenTransaction]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="red", no_wrap=True)
    table.add_column()
    for each in found:
        who = ", ".join(part for part in (each.application, each.client) if part)
        doing = "nothing under way" if each.is_idle else "at work"
        table.add_row(
            f"{each.seconds:,.1f} s", Text(f"transaction open, {doing}: {printable(who)}")
        )
    return table


def _busiest(look: Look, width: int) -> Table:
    """Three lists beside each other, of the last minute."""
    lists: tuple[tuple[str, Sequence[tuple[str, int]]], ...] = (
        ("users, last minute", look.busiest_users),
        ("actions", look.busiest_actions),
        ("refusals", list((look.refusals or {}).items())),
    )
    table = Table.grid(padding=(0, _GAP))
    counts = [max((len(f"{count:,}") for _, count in rows), default=0) for _, rows in lists]
    # The counts are never cut. The names share what is left.
    room = (width - sum(counts) - _GAP * 2 * len(lists)) // len(lists)
    most = max(_SHORTEST_NAME, min(room, _LONGEST_NAME))
    for _ in lists:
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
    table.add_row(
        *(cell for name, _ in lists for cell in (_cut(name, most, style="bold"), Text("")))
    )
    for number in range(max(len(rows) for _, rows in lists)):
        cells: list[Text] = []
        for _, rows in lists:
            name, count = rows[number] if number < len(rows) else ("", None)
            cells += [_cut(name, most), Text("" if count is None else f"{count:,}")]
        table.add_row(*cells)
    return table


def _cut(name: str, most: int, style: str = "") -> Text:
    text = Text(printable(name), style=style)
    text.truncate(most, overflow="ellipsis")
    return text


def _warning(name: str, why: str) -> Text:
    return Text(f"{name}: {why}", style="yellow")
