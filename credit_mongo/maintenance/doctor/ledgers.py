"""Checks of the ledger's own things: settings, indexes, validator, roles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pymongo.errors import OperationFailure

from credit_mongo.errors import ConfigurationError
from credit_mongo.maintenance.doctor.findings import Finding, Patient, good, unknown
from credit_mongo.maintenance.indexes import IndexChange, ensure_all
from credit_mongo.maintenance.roles import Privilege, credit_roles
from credit_mongo.storage.forms import FORM, missing_forms
from credit_mongo.storage.server_errors import UNAUTHORIZED
from credit_mongo.storage.settings import LedgerSettings, stored_settings

__all__ = ["check_indexes", "check_roles", "check_settings"]

_INIT: Final = "run credit-mongo init"
_MOST_SHOWN: Final = 3


async def check_settings(patient: Patient) -> list[Finding]:
    """The settings in the database are there, are this configuration's, and of this version."""
    check = "settings"
    try:
        rows = await stored_settings(patient.database)
    except OperationFailure as error:
        if error.code == UNAUTHORIZED:
            return [unknown(check, "credit-mongo roles --create lets all roles read them")]
        raise
    own = LedgerSettings.of(patient.config)
    try:
        row = own.check(rows)
    except ConfigurationError as error:
        return [Finding(check, "wrong", str(error), "use the configuration of this ledger")]
    if row is None:
        remedy = f"{_INIT} --config FILE: it stores the settings"
        return [Finding(check, "wrong", "the database has none for this ledger", remedy)]
    missing = ", ".join(form.name for form in missing_forms(row))
    if missing:
        return [Finding(check, "wrong", f"lack the migrations {missing}", _INIT)]
    places = row.get("decimalPlaces")
    return [good(check, f"stored in form {FORM}, with {places} decimal places")]


async def check_indexes(patient: Patient) -> list[Finding]:
    """Collections, indexes and validators are as the ledger needs them."""
    try:
        report = await ensure_all(patient.database, decimal_places=None, dry_run=True)
    except OperationFailure as error:
        if error.code == UNAUTHORIZED:
            remedy = "the role creditSetup may see them"
            return [unknown("indexes", remedy), unknown("validators", remedy)]
        raise
    except ConfigurationError as error:
        return [Finding("indexes", "wrong", str(error), "use the configuration of this ledger")]
    validators, others = _parted(report.kept)
    found = []
    for name, is_validator, kept in (
        ("indexes", False, others),
        ("validators", True, validators),
    ):
        missing, in_the_way = (
            _parted(changes)[0 if is_validator else 1]
            for changes in ((*report.created, *report.changed), report.conflicts)
        )
        if in_the_way:
            first = in_the_way[0]
            seen = f"in the way: {_words(in_the_way)}: {first.reason}"
            found.append(Finding(name, "wrong", seen, first.remedy or _INIT))
        elif missing:
            found.append(Finding(name, "wrong", f"missing or different: {_words(missing)}", _INIT))
        else:
            found.append(good(name, f"{len(kept)} as they should be"))
    return found


def _parted(changes: Iterable[IndexChange]) -> tuple[list[IndexChange], list[IndexChange]]:
    """Validators, and all else but the settings, which have their own check."""
    listed = [each for each in changes if each.kind != "settings"]
    is_validator = [each.kind == "validator" for each in listed]
    return (
        [each for each, is_one in zip(listed, is_validator, strict=True) if is_one],
        [each for each, is_one in zip(listed, is_validator, strict=True) if not is_one],
    )


def _words(changes: list[IndexChange]) -> str:
    names = [f"{each.collection}.{each.name}" if each.name else each.collection for each in changes]
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"{', '.join(names[:_MOST_SHOWN])}{more}"


async def check_roles(patient: Patient) -> list[Finding]:
    """Who is logged in may do what the application does."""
    check, database = "roles", patient.database
    status = await database.ask({"connectionStatus": 1, "showPrivileges": True})
    info = status["authInfo"]
    if not info["authenticatedUsers"]:
        if info.get("authenticatedUserPrivileges"):
            return [unknown(check)]
        remedy = "turn on access control (authorization, keyFile), and run credit-mongo roles"
        seen = "nobody is logged in: the server lets anybody do anything"
        return [Finding(check, "doubtful", seen, remedy)]
    user = info["authenticatedUsers"][0]["user"]
    roles = ", ".join(each["role"] for each in info["authenticatedUserRoles"]) or "none"
    [runtime] = [
        role
        for role in credit_roles(database.name, database.names, database.mapping)
        if role.name == "creditRuntime"
    ]
    privileges = info["authenticatedUserPrivileges"]
    lacking = [
        f"{action} on {each.collection}"
        for each in runtime.privileges
        for action in each.actions
        if not _may(privileges, each, action)
    ]
    seen = f"{user} has the roles {roles}"
    if not lacking:
        return [good(check, f"{seen}, enough for the application")]
    more = f" and {len(lacking) - _MOST_SHOWN} more" if len(lacking) > _MOST_SHOWN else ""
    shown = f"{', '.join(lacking[:_MOST_SHOWN])}{more}"
    remedy = (
        "if the application logs in as this user, give it creditRuntime: "
        "credit-mongo roles --create makes or corrects that role"
    )
    return [Finding(check, "doubtful", f"{seen}. It lacks {shown}", remedy)]


def _may(privileges: list[dict[str, Any]], wanted: Privilege, action: str) -> bool:
    return any(
        action in each["actions"] and _covers(each["resource"], wanted) for each in privileges
    )


def _covers(resource: dict[str, Any], wanted: Privilege) -> bool:
    """Whether a privilege's resource includes a collection. An empty name stands for all."""
    if resource.get("anyResource"):
        return True
    if "db" not in resource:
        return False
    return resource["db"] in ("", wanted.database) and resource["collection"] in (
        "",
        wanted.collection,
    )
