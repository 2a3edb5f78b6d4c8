"""All checks in their order, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from pymongo.errors import OperationFailure, PyMongoError

from credit_mongo.errors import CreditError, StorageError
from credit_mongo.maintenance.doctor.findings import Check, Finding, Patient, unknown
from credit_mongo.maintenance.doctor.ledgers import check_indexes, check_roles, check_settings
from credit_mongo.maintenance.doctor.servers import (
    check_clock,
    check_connections,
    check_dates,
    check_disk,
    check_members,
    check_reachable,
    check_ttl_monitor,
    check_version,
    check_write_concern,
)
from credit_mongo.storage.server_errors import UNAUTHORIZED
from credit_mongo.storage.unreachable import no_usable_server

__all__ = ["CHECKS", "examine"]

CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("replica set", check_members),
    ("version", check_version),
    ("write concern", check_write_concern),
    ("clocks", check_clock),
    ("dates", check_dates),
    ("settings", check_settings),
    ("indexes", check_indexes),
    ("TTL", check_ttl_monitor),
    ("disk", check_disk),
    ("connections", check_connections),
    ("roles", check_roles),
)
"""Every check by its name, but that the server is reachable, which the others need."""


async def examine(
    patient: Patient,
    timeout_seconds: float,
    *,
    first: Sequence[tuple[str, Check]] = (),
    last: Sequence[tuple[str, Check]] = (),
) -> list[Finding]:
    """Make all checks, each within ``timeout_seconds``. They leave nothing behind.

    If no server answers, that is the only finding.
    """
    findings = await _made("reachable", check_reachable, patient, timeout_seconds)
    if findings[0].state != "good":
        return findings
    for name, check in (*first, *CHECKS, *last):
        findings += await _made(name, check, patient, timeout_seconds)
    return findings


async def _made(name: str, check: Check, patient: Patient, seconds: float) -> list[Finding]:
    try:
        # A second more, so that the driver can say which servers did not answer in time.
        return await asyncio.wait_for(check(patient), seconds + 1)
    except asyncio.TimeoutError:
        remedy = "look at the load of the server: credit-mongo watch"
        return [Finding(name, "wrong", f"no answer in {seconds:g} s", remedy)]
    except CreditError as error:
        cause = error.__cause__
        if isinstance(error, StorageError) and isinstance(cause, OperationFailure):
            return [_refused(name, cause)]
        return [Finding(name, "wrong", str(error))]
    except OperationFailure as error:
        return [_refused(name, error)]
    except PyMongoError as error:
        seen, _, remedy = no_usable_server(str(error)).partition(". ")
        return [Finding(name, "wrong", seen, remedy)]


def _refused(name: str, error: OperationFailure) -> Finding:
    if error.code == UNAUTHORIZED:
        return unknown(name, "credit-mongo roles shows which role may do it")
    # Without the server's text, which can quote the command.
    code = (error.details or {}).get("codeName", "error")
    return Finding(name, "wrong", f"the server refused it: {code} (code {error.code})")
