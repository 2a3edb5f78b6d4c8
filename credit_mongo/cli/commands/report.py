"""``credit-mongo report``: draw what was granted and spent, as a page and as a picture."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Annotated, Final

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.ledgers import (
    PeriodEnd,
    PeriodStart,
    moment_of,
    whole_number,
)
from credit_mongo.cli.output import AsJson, note, progress, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.config import CreditConfig
from credit_mongo.errors import StorageError
from credit_mongo.maintenance.export.files import whole_file
from credit_mongo.maintenance.export.formats import Write
from credit_mongo.maintenance.usage.measuring import usage_of
from credit_mongo.maintenance.usage.periods import zone_of
from credit_mongo.maintenance.usage.results import Usage
from credit_mongo.maintenance.usage.words import Scale, change, period, period_before, totals

_DEFAULT_DAYS: Final = 30
_NEEDED: Final = ("jinja2", "markupsafe", "matplotlib")


@app.command("report", rich_help_panel="Records")
def report(
    file: Annotated[
        Path | None, typer.Argument(metavar="[PAGE]", help="The HTML page to write.")
    ] = None,
    *,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Also write it all as one picture."),
    ] = None,
    start: PeriodStart = None,
    end: PeriodEnd = None,
    time_zone: Annotated[
        str,
        typer.Option(
            "--timezone", metavar="ZONE", help="The zone of days and months: UTC, Europe/Berlin, …"
        ),
    ] = "UTC",
    top: Annotated[
        str, typer.Option(metavar="N", help="How many actions, tiers and users to name, up to 100.")
    ] = "10",
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Draw credits granted and spent: over time, by action, by tier, and by the top spenders.

    PAGE is one HTML file that loads nothing from elsewhere. The period is the last 30 days, or from
    --from to --to, and is compared with the period before. Dates are in --timezone. Refunds,
    expired and revoked credits, tier changes and corrections are listed separately from grants and
    charges. Archived transactions count if they are in the database. Amounts are in credits if the
    ledger has decimal places, else in smallest units. Without a file, only the totals are shown.
    """
    places = whole_number("--top", top)
    zone = zone_of(time_zone)
    until = moment_of("to", end, zone) or datetime.now(timezone.utc)
    since = moment_of("from", start, zone) or _default_start(until, zone)
    where = Connecting.to(uri, database, timeout)
    _check_files(file, png)
    settings = settings_of(where, config, reads_users=False)

    async def work(found: Database) -> Usage:
        with progress("Summing up", "sums") as advance:
            return await usage_of(
                found,
                since,
                until,
                places=places,
                zone=zone,
                collections=settings.collections,
                on_progress=advance,
            )

    with ExitStack() as files:
        # Open both files first: a refused file ends the command before the work, and neither file
        # appears until both are written.
        picture = _opened(files, png, force=force)
        page = _opened(files, file, force=force)
        usage = where.run_on_ledger(settings, work)
        if page is not None:
            page(_page(usage, where.database, settings).encode("utf-8", errors="replace"))
        if picture is not None:
            from credit_mongo.cli.usage_chart import draw_report  # noqa: PLC0415 - optional

            picture(draw_report(usage, where.database, Scale(settings.decimal_places)))
    _show(usage, where.database, [each for each in (file, png) if each], settings, as_json=as_json)
    return DONE


def _default_start(end: datetime, zone: tzinfo) -> datetime:
    """Midnight, 30 days before the end."""
    try:
        start = end.astimezone(zone) - timedelta(days=_DEFAULT_DAYS)
    except OverflowError:
        raise typer.BadParameter("--to is too early for a period of 30 days: give --from") from None
    return start.replace(hour=0, minute=0, second=0, microsecond=0)


def _check_files(file: Path | None, png: Path | None) -> None:
    if file is not None and png is not None and file.absolute() == png.absolute():
        raise typer.BadParameter("PAGE and --png are the same file: name two files")
    if file is None and png is None:
        return
    for name in _NEEDED:
        try:
            __import__(name)
        except ModuleNotFoundError:
            raise StorageError(f"{name} is missing: pip install 'credit-mongo[report]'") from None


def _opened(files: ExitStack, path: Path | None, *, force: bool) -> Write | None:
    if path is None:
        return None
    try:
        return files.enter_context(whole_file(path, overwrite=force))
    except OSError as error:
        # Not an OSError, which the file that is already open would take for its own.
        raise StorageError(f"{path}: {error.strerror}") from None


def _page(usage: Usage, database: str, settings: CreditConfig) -> str:
    from credit_mongo.cli.usage_chart import draw_over_time  # noqa: PLC0415 - optional
    from credit_mongo.cli.usage_page import write_page  # noqa: PLC0415

    scale = Scale(settings.decimal_places)
    return write_page(usage, database, draw_over_time(usage, scale), scale)


def _show(
    usage: Usage, database: str, files: list[Path], settings: CreditConfig, *, as_json: bool
) -> None:
    if as_json:
        show_facts(
            {"database": database, "files": [str(each) for each in files], **usage.to_dict()}
        )
        return
    now, before = dict(totals(usage.totals)), dict(totals(usage.before.totals))
    show_rows(
        ("total", "amount", "period before", "change"),
        [
            (name, now.get(name, 0), before.get(name, 0), _change(name, now, before))
            for name in {**now, **before}
        ],
        amounts=("amount", "period before"),
        decimal_places=settings.decimal_places,
    )
    if usage.has_files:
        note("note: transactions archived to files are not counted, and the period may have some")
    if usage.left_out:
        note(
            f"note: {usage.left_out} rows are left out, because their amount is not a whole number "
            "or their createdAt is not a date: credit-mongo verify names them"
        )
    happened = (
        "nothing happened"
        if usage.is_empty
        else f"{usage.transactions:,} transactions, {usage.active_users:,} active users"
    )
    show(f"{database}: {happened}, {period(usage)}")
    show(f"the period before: {period_before(usage)}")
    for path in files:
        show(f"written: {path}")


def _change(name: str, now: dict[str, int], before: dict[str, int]) -> str | None:
    return change(now.get(name, 0), before.get(name, 0)) or None
