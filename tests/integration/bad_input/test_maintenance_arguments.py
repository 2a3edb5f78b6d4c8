"""Bad input to the maintenance functions: a typed error names it, and nothing is written."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest

from credit_mongo import InvalidRequestError
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.cleanup import clean_up
from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.erase_preview import preview_erasure
from credit_mongo.maintenance.export.exporting import export_transactions
from credit_mongo.maintenance.indexes import ensure_indexes
from credit_mongo.maintenance.roles import ensure_roles
from credit_mongo.maintenance.status import status_of
from credit_mongo.maintenance.usage.measuring import usage_of
from credit_mongo.maintenance.verification.repair import repair
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.bad_input.methods import USER, dump
from tests.integration.promises import Database

Wrong = list[Any]
NOW: Final = datetime.now(timezone.utc)
NAN, INFINITY = float("nan"), float("inf")
NO_PART: Final[Wrong] = [{}, "users", 5, ("users",)]
NO_FLAG: Final[Wrong] = [0, 1, "yes", None]
NO_FUNCTION: Final[Wrong] = [5, "print", True]
NO_ID: Final[Wrong] = [5, "", "a" * 256, "a\nb", {"$ne": ""}, ["u"]]
NO_MOMENT: Final[Wrong] = [5, "2026-01-01", NOW.replace(tzinfo=None), NOW.date()]
NO_PLACES: Final[Wrong] = [-1, 10, 2.0, "2", True]


def seconds(least: float, most: float) -> Wrong:
    """Return values that are no number of seconds from ``least`` to ``most``."""
    return [least / 2 - 1, most * 2, NAN, INFINITY, "60", True, [60], 10**400]


@dataclass(frozen=True)
class Job:
    """A function, a good call of it, and values that it must refuse, by argument."""

    run: Callable[..., Awaitable[Any]]
    good: dict[str, Any] = field(default_factory=dict)
    bad: dict[str, Wrong] = field(default_factory=dict)


PARTS: Final = {"collections": NO_PART, "users": NO_PART}
NAMES: Final = {"names": NO_PART, "users": NO_PART}
VERIFIED: Final[dict[str, Wrong]] = {
    **PARTS,
    "user_ids": ["ann", b"ann", 5, [5], ["ann", ""]],
    "audits": NO_FLAG,
    "key_ttl_seconds": [0, *seconds(1, 366 * 24 * 3600)],
    "max_clock_skew_seconds": [0, *seconds(1, 10 * 366 * 24 * 3600)],
    "on_progress": NO_FUNCTION,
}
JOBS: Final[dict[str, Job]] = {
    "verify": Job(verify, {}, VERIFIED),
    "repair": Job(
        repair,
        {"operator": "Ada", "reason": "to try it", "dry_run": True},
        {**VERIFIED, "operator": NO_ID, "reason": NO_ID, "dry_run": NO_FLAG},
    ),
    "export_transactions": Job(
        export_transactions,
        {"destination": "all.csv", "format": "csv", "overwrite": True},
        {
            **PARTS,
            "destination": ["all.csv", 5, b"all.csv"],
            "format": ["xml", 5, None, ["csv"]],
            "user_id": NO_ID,
            "start": NO_MOMENT,
            "end": NO_MOMENT,
            **dict.fromkeys(
                ("include_archived", "overwrite", "guard_cells", "byte_order_mark"), NO_FLAG
            ),
            "decimal_places": [None, *NO_PLACES],
            "on_progress": NO_FUNCTION,
        },
    ),
    "usage_of": Job(
        usage_of,
        {"start": NOW - timedelta(days=1), "end": NOW},
        {
            "start": [None, *NO_MOMENT],
            "end": [None, *NO_MOMENT],
            "places": [None, 0, 101, "10", 1.5, True],
            "zone": [None, "UTC", 5],
            "collections": NO_PART,
            "on_progress": NO_FUNCTION,
        },
    ),
    "erase_user": Job(
        erase_user,
        {"user_id": "somebody"},
        {
            **PARTS,
            "user_id": [None, *NO_ID],
            "requested_by": NO_ID,
            "step_seconds": [None, 0, *seconds(0.001, 3600)],
            "clock": [None, NOW, 5],
            "on_progress": NO_FUNCTION,
        },
    ),
    "preview_erasure": Job(
        preview_erasure, {"user_id": USER}, {**PARTS, "user_id": [None, *NO_ID]}
    ),
    "clean_up": Job(
        clean_up,
        {},
        {
            "collections": NO_PART,
            "grace_seconds": [None, *seconds(0, 366 * 24 * 3600)],
            "refusals_older_than_seconds": [60, *seconds(3600, 3653 * 24 * 3600)],
            "dry_run": NO_FLAG,
            "on_progress": NO_FUNCTION,
        },
    ),
    "archive": Job(
        archive,
        {"older_than": "90d", "dry_run": True},
        {
            **PARTS,
            "older_than": [None, 5, "soon", NOW + timedelta(days=9), NOW.replace(tzinfo=None)],
            "directory": [5, b"x", ""],
            "file_format": ["csv", 5, None],
            "kinds": ["users", 5, None],
            "full_speed": NO_FLAG,
            "dry_run": NO_FLAG,
            "lease_seconds": [None, 0, *seconds(0.05, 3600)],
            "hold_late_seconds": [None, *seconds(0, 366 * 24 * 3600)],
            "on_progress": NO_FUNCTION,
        },
    ),
    "status_of": Job(status_of, {}, {**NAMES, "decimal_places": NO_PLACES}),
    "ensure_indexes": Job(
        ensure_indexes,
        {"names": None},
        {**NAMES, "decimal_places": NO_PLACES, "validators": NO_FLAG, "dry_run": NO_FLAG},
    ),
    "ensure_roles": Job(
        ensure_roles, {"names": None, "dry_run": True}, {**NAMES, "dry_run": NO_FLAG}
    ),
}


def files_in(directory: Path) -> list[str]:
    """Return the names of the files in a directory."""
    return [path.name for path in directory.iterdir()]


@pytest.mark.parametrize("name", JOBS)
def test_every_argument_of_every_job_is_tried(name: str) -> None:
    """A new argument needs its wrong values above."""
    arguments = set(inspect.signature(JOBS[name].run).parameters)
    assert set(JOBS[name].bad) == arguments - {"database"}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.usefixtures("books")
async def test_bad_arguments_of_jobs_get_a_typed_error_and_write_nothing(
    name: str, database: Database, tmp_path: Path
) -> None:
    """Each wrong value is refused with its argument's name, and the good call succeeds."""
    job = JOBS[name]
    good = {**job.good}
    if "destination" in good:
        good["destination"] = tmp_path / good["destination"]
    before = await dump(database)
    wrong = []
    for argument, values in job.bad.items():
        for value in values:
            try:
                await job.run(database, **{**good, argument: value})
            except InvalidRequestError as error:
                if error.field != argument:
                    wrong.append(f"{argument}={value!r:.40} is refused as {error.field}")
            except Exception as error:
                wrong.append(f"{argument}={value!r:.40} raises {type(error).__qualname__}")
            else:
                wrong.append(f"{argument}={value!r:.40} is taken")
    assert not wrong
    assert await dump(database) == before
    assert files_in(tmp_path) == []
    if name == "erase_user":
        good["user_id"] = USER
    await job.run(database, **good)
