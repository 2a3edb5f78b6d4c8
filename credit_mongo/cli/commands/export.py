"""``credit-mongo export``: export a period's transactions as CSV, JSON lines or Parquet."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.output import AsJson, progress, show, show_facts
from credit_mongo.maintenance.export.exporting import Export, export_transactions
from credit_mongo.maintenance.export.formats import FORMATS, Format
from credit_mongo.maintenance.moments import parse_moment

_SUFFIXES: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


@app.command("export")
def export(
    *,
    user: Annotated[
        str | None, typer.Option(metavar="ID", show_default=False, help="Default: everyone.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="From this date or moment, UTC.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="DATE", help="Before this date or moment, UTC.")
    ] = None,
    include_archived: Annotated[
        bool, typer.Option("--include-archived", help="Include the archive collections.")
    ] = False,
    output: Annotated[
        str, typer.Option(metavar="FILE", help="The file to write, or - for standard output.")
    ] = "-",
    kind: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="|".join(FORMATS), help="Default: by the file's suffix, or csv."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the file if it exists.")
    ] = False,
    verbatim: Annotated[
        bool,
        typer.Option(
            "--verbatim",
            help="CSV for programs: no apostrophe before cells that look like formulas.",
        ),
    ] = False,
    byte_order_mark: Annotated[
        bool, typer.Option("--bom", help="CSV for Excel: start with a byte order mark.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Export transactions, user by user, newest first.

    Amounts are in smallest units. If the ledger has decimal places, credits are exported too.
    Moments are in UTC, and metadata is JSON. A spreadsheet would run a CSV cell that starts with
    =, +, - or @ as a formula, so an apostrophe goes before these, also after a semicolon. A file is
    written completely or not at all. Transactions archived to files are not included.
    """
    path = None if output == "-" else Path(output)
    options: dict[str, Any] = {
        "format": _format(kind, path),
        "user_id": user,
        "start": None if start is None else parse_moment("from", start),
        "end": None if end is None else parse_moment("to", end),
        "include_archived": include_archived,
        "overwrite": force,
        "guard_cells": not verbatim,
        "byte_order_mark": byte_order_mark,
    }
    if path is None and as_json:
        raise typer.BadParameter("--json needs --output FILE")
    if path is None and options["format"] == "parquet" and sys.stdout.isatty():
        raise typer.BadParameter("Parquet can't be shown on a terminal: give --output FILE")
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config, reads_users=False)
    options |= {
        "collections": settings.collections,
        "users": settings.users,
        "decimal_places": settings.decimal_places,
    }

    async def work(found: Database) -> Export:
        # Millions of rows come and go, none of them in a cycle. Collecting less often saves time.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        with progress("Exporting", "transactions") as advance:
            return await export_transactions(found, path, **options, on_progress=advance)

    done = where.run_on_ledger(settings, work)
    if done.has_files:
        note = "transactions archived to files are not included: see the archive's directory"
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        facts = {"transactions": done.transactions, "has_files": done.has_files}
        show_facts({"database": where.database, "output": output, **facts})
    elif path is not None:
        show(f"{where.database}: {done.transactions} transactions exported to {output}")
    return DONE


def _format(kind: str | None, path: Path | None) -> Format:
    if kind is not None:
        if kind not in FORMATS:
            raise typer.BadParameter(f"--format must be one of {', '.join(FORMATS)}")
        return kind
    if path is None:
        return "csv"
    if path.suffix.lower() not in _SUFFIXES:
        raise typer.BadParameter(
            f"the suffix {path.suffix[:40]!r} names no format: give --format {'|'.join(FORMATS)}"
        )
    return _SUFFIXES[path.suffix.lower()]
