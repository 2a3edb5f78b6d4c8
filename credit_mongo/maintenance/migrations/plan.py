"""Which migrations to apply or to roll back, by the files and the log. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from credit_mongo.errors import MigrationError
from credit_mongo.maintenance.migrations.files import MigrationFile
from credit_mongo.maintenance.migrations.log import Entry

__all__ = ["MigrationState", "StateName", "plan_down", "plan_up", "states_of"]

StateName: TypeAlias = Literal[
    "pending", "applied", "changed", "missing", "newer", "applying", "rolling back"
]


@dataclass(frozen=True, slots=True)
class MigrationState:
    """A migration, by the directory and the log.

    - pending: not applied
    - applied
    - changed: applied, and its file has been changed since
    - missing: applied, and its file is gone
    - newer: applied, without a file, and after all files: a newer version of the application did
      it. In a directory without files, all are missing: it is more likely the wrong one
    - applying, rolling back: a run without a transaction was interrupted, or is at work
    """

    name: str
    state: StateName
    at: datetime | None = None
    by: str | None = None
    host: str | None = None
    seconds: float | None = None
    checksum: str | None = None


def states_of(
    files: Sequence[MigrationFile], entries: Mapping[str, Entry]
) -> tuple[MigrationState, ...]:
    """Return all migrations, in the order of their names."""
    by_name = {file.name: file for file in files}
    found = []
    for name in sorted(by_name.keys() | entries.keys()):
        entry, file = entries.get(name), by_name.get(name)
        if entry is None or entry.state == "rolled back":
            if file is not None:
                found.append(MigrationState(name, "pending"))
            continue
        state: StateName = entry.state
        if file is None:
            is_last = bool(files) and name > files[-1].name
            state = "newer" if is_last and state == "applied" else "missing"
        elif state == "applied" and entry.checksum != file.checksum:
            state = "changed"
        facts = (entry.at, entry.by, entry.host, entry.seconds, entry.checksum)
        found.append(MigrationState(name, state, *facts))
    return tuple(found)


def plan_up(
    files: Sequence[MigrationFile], entries: Mapping[str, Entry], to: MigrationFile | None
) -> list[MigrationFile]:
    """Return the files to apply, in their order, up to ``to``.

    Raises MigrationError if a migration that was applied is changed or missing, or was being rolled
    back.
    """
    for each in states_of(files, entries):
        _check(each, "up", unfinished="rolling back")
    return [
        file
        for file in files
        if (to is None or file.name <= to.name)
        and (file.name not in entries or entries[file.name].state != "applied")
    ]


def plan_down(
    files: Sequence[MigrationFile], entries: Mapping[str, Entry], to: MigrationFile | None
) -> list[MigrationFile]:
    """Return the files to roll back, the last one first: all after ``to``, or only the last.

    Raises MigrationError if one of them is changed or missing, or was being applied.
    """
    applied = [each for each in states_of(files, entries) if each.state != "pending"]
    if to is not None:
        if to.name not in {each.name for each in applied}:
            raise MigrationError(to.name, "is not applied, so nothing can be rolled back to it")
        chosen = [each for each in applied if each.name > to.name]
    else:
        chosen = applied[-1:]
    by_name = {file.name: file for file in files}
    for each in chosen:
        _check(each, "down", unfinished="applying")
        if each.state == "newer":
            raise MigrationError(
                each.name,
                "a newer version of the application applied it, and only that version's directory "
                "can roll it back",
            )
    return [by_name[each.name] for each in reversed(chosen)]


def _check(found: MigrationState, direction: str, *, unfinished: StateName) -> None:
    if found.state == "changed":
        raise MigrationError(
            found.name,
            f"its file was changed since {found.by} applied it: restore the file, or accept the "
            f"change by credit-mongo migrate resolve {found.name} --applied",
        )
    if found.state == "missing":
        raise MigrationError(
            found.name,
            f"{found.by} applied it, and its file is missing: restore the file, or forget the "
            f"migration by credit-mongo migrate resolve {found.name} --rolled-back",
        )
    if found.state == unfinished:
        other = "down" if direction == "up" else "up"
        raise MigrationError(
            found.name,
            f"{found.by} began {found.state} it, and did not finish: complete that by credit-mongo "
            f"migrate {other}, or by hand and credit-mongo migrate resolve",
        )
