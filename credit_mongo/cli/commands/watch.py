"""``credit-mongo watch``: what the ledger and its servers do, live."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

import typer
from rich.console import Console
from rich.live import Live

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.output import AsJson
from credit_mongo.cli.watch_page import page_of
from credit_mongo.maintenance.watching.watcher import Watcher
from credit_mongo.printing import printable_lines
from credit_mongo.storage.database import LedgerDatabase


@app.command("watch", rich_help_panel="Maintenance")
def watch(
    *,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Show live what is charged and refused, by whom, and how the servers do. End with Ctrl-C.

    It shows charges a second, refusals by code, latencies, replication and TTL lag, transactions
    that have been open for a second or longer, active holds, and the ten busiest users and actions
    of the last minute. It scans nothing and writes nothing. --json prints one object a line a
    second. The role creditReader sees the ledger, clusterMonitor the servers; what your role may
    not see is left out, and the page says so.
    """
    if not as_json and not sys.stdout.isatty():
        raise typer.BadParameter("needs a terminal: give --json to print a line a second")
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config, reads_users=False)

    async def work(found: Database) -> None:
        ledger = LedgerDatabase.of(found, settings.collections, settings.users)
        # Ctrl-C cancels it: that is how one ends it.
        with contextlib.suppress(asyncio.CancelledError):
            async with Watcher(ledger) as watcher:
                await (_print_lines(watcher) if as_json else _draw(watcher, where.database))

    with contextlib.suppress(KeyboardInterrupt):
        where.run(work)
    return DONE


async def _print_lines(watcher: Watcher) -> None:
    async for look in watcher.looks():
        print(printable_lines(json.dumps(look.to_dict())), flush=True)


async def _draw(watcher: Watcher, database: str) -> None:
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        async for look in watcher.looks():
            live.update(page_of(look, database, live.console.width), refresh=True)
