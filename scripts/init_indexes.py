"""Create the collections, the indexes and the validator of the ledger; run it as often as you like.

    python scripts/init_indexes.py --uri 'mongodb://…/?replicaSet=rs0' --database app

Exit code 0: all is there; 1: something of the application's is in the way, shown with its remedy;
2: it could not be done, and the reason is on stderr; 130: Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from pymongo.errors import (
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from credit_mongo.config import CollectionNames, Settings
from credit_mongo.connection import check_replica_set, connect
from credit_mongo.errors import CreditError
from credit_mongo.maintenance.indexes import IndexReport, ensure_indexes

CONFLICT = 1
NOT_DONE = 2
INTERRUPTED = 130

_UNAUTHORIZED = 13
_AUTHENTICATION_FAILED = 18
_LONGEST_TIMEOUT_SECONDS = 3600


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # Argparse quotes what it was given, which may be an URI in the wrong place.
        super().error(re.sub(r"://\S*@", "://…@", message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the command line's arguments; return the exit code."""
    options = _parse(arguments)
    try:
        report = asyncio.run(_ensure(options))
    except (CreditError, PyMongoError, OSError, asyncio.TimeoutError) as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        return NOT_DONE
    except KeyboardInterrupt:
        print("interrupted: run it again to complete it", file=sys.stderr)
        return INTERRUPTED
    if options.json:
        facts = {"database": options.database, "dry_run": options.dry_run, **report.to_dict()}
        print(json.dumps(facts, indent=2))
    else:
        _show(report, options)
    return CONFLICT if report.conflicts else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    settings = Settings()
    parser = _Parser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--uri", default=settings.uri, help="default: MONGODB_URI, or localhost")
    parser.add_argument(
        "--database", default=settings.database, help="default: MONGODB_DATABASE, or 'credits'"
    )
    parser.add_argument("--dry-run", action="store_true", help="write nothing, show what would be")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--no-validators", action="store_true", help="set no validator")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long to wait for the server (default 10); building indexes may take longer",
    )
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= _LONGEST_TIMEOUT_SECONDS:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be above 0, up to {_LONGEST_TIMEOUT_SECONDS}")


async def _ensure(options: argparse.Namespace) -> IndexReport:
    database = connect(options.uri, options.database, options.timeout)
    try:
        # A moment more, for the driver to say which servers did not answer it in time.
        await asyncio.wait_for(check_replica_set(database), options.timeout + 1)
        return await ensure_indexes(
            database,
            CollectionNames(),
            validators=not options.no_validators,
            dry_run=options.dry_run,
        )
    finally:
        await database.client.close()


def _show(report: IndexReport, options: argparse.Namespace) -> None:
    for change in report.changes:
        name = f".{change.name}" if change.name else ""
        reason = f": {change.reason}" if change.reason else ""
        print(f"{change.state:9} {change.kind:11} {change.collection}{name}{reason}")
        if change.remedy:
            print(f"{'':9} remedy:     {change.remedy}")
    counts = (
        f"{len(report.created)} created, {len(report.kept)} kept, "
        f"{len(report.changed)} changed, {len(report.conflicts)} in conflict"
    )
    note = " (dry run: nothing was written)" if options.dry_run else ""
    print(f"{options.database}: {counts}{note}")
    if report.conflicts:
        print("Resolve the conflicts (remedies are for mongosh) and run this again.")


def _explain(error: BaseException) -> str:
    """What went wrong and what to do, in one line and without what the URI keeps secret."""
    if isinstance(error, OperationFailure):
        # The server's text can quote the command; its code cannot.
        name = (error.details or {}).get("codeName", "error")
        reason = f"the server refuses it: {name} (code {error.code})"
        if error.code == _AUTHENTICATION_FAILED:
            return f"{reason}; check user name, password and authSource of the URI"
        if error.code == _UNAUTHORIZED:
            return f"{reason}; the user needs the roles readWrite and dbAdmin on the database"
        return reason
    if isinstance(error, ServerSelectionTimeoutError | NetworkTimeout | asyncio.TimeoutError):
        # What follows is the driver's view of the whole topology.
        found = str(error).partition(" (configured timeouts")[0].partition(", Timeout:")[0]
        return _in_one_line(
            f"no usable server in time{': ' if found else ''}{found}. "
            "Is the URI right, and does each mongod run with --replSet, once initiated? "
            "For development: python -m credit_mongo.local"
        )
    return _in_one_line(str(error))


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
