"""Least-privilege roles for one database: each kind of work gets what it needs and nothing else.

The module lists the granted actions for each collection, in MongoDB's own terms. A user with only
one of these roles cannot access any other collection or database. The exception is the one for
backups: it can read all collections of the database.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from pymongo.errors import OperationFailure

from credit_mongo.config import (
    BACKUPS_COLLECTION,
    IMPORTS_COLLECTION,
    MIGRATIONS_COLLECTION,
    SETTINGS_COLLECTION,
    CollectionNames,
)
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.values import check_flag, check_kind
from credit_mongo.drivers import AnyDatabase
from credit_mongo.storage.connection import check_database
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = [
    "Privilege",
    "Role",
    "RoleChange",
    "RoleReport",
    "credit_roles",
    "ensure_roles",
    "missing_rights",
]

RoleState: TypeAlias = Literal["created", "kept", "changed"]

_ROLE_EXISTS: Final = 51002
# In a privilege, "" means the whole database. Listing its collections needs that.
_DATABASE: Final = ""
_READ: Final = ("find",)
# A ledger compares its settings when it opens.
_OPENING: Final = {SETTINGS_COLLECTION: _READ}


@dataclass(frozen=True, slots=True)
class Privilege:
    """Actions on one collection of one database. The collection ``""`` is the database itself."""

    database: str
    collection: str
    actions: tuple[str, ...]

    def to_dict(self) -> Raw:
        """Return the privilege as ``createRole`` takes it."""
        resource = {"db": self.database, "collection": self.collection}
        return {"resource": resource, "actions": list(self.actions)}


@dataclass(frozen=True, slots=True)
class Role:
    """A role of the database. ``purpose`` says who should have it."""

    name: str
    database: str
    purpose: str
    privileges: tuple[Privilege, ...]

    def create_command(self) -> Raw:
        """Return the command that creates the role. Run it in the role's database."""
        return {"createRole": self.name, **self._definition()}

    def update_command(self) -> Raw:
        """Return the command that updates an existing role. Its users keep the role."""
        return {"updateRole": self.name, **self._definition()}

    def to_mongosh(self) -> str:
        """Return one line to paste into mongosh, whatever its current database."""
        database, command = json.dumps(self.database), json.dumps(self.create_command())
        return f"db.getSiblingDB({database}).runCommand({command})"

    def _definition(self) -> Raw:
        return {"privileges": [each.to_dict() for each in self.privileges], "roles": []}


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What was done to one role (in a dry run: what would be done)."""

    role: str
    state: RoleState
    added: tuple[str, ...] = ()
    """Privileges that the role lacked, each as ``action on database.collection``."""
    removed: tuple[str, ...] = ()
    """Privileges that the role had in excess, also through inherited roles."""


@dataclass(frozen=True, slots=True)
class RoleReport:
    """What was done to all roles."""

    changes: tuple[RoleChange, ...]

    @property
    def created(self) -> tuple[RoleChange, ...]:
        """Roles that were missing."""
        return self._in_state("created")

    @property
    def kept(self) -> tuple[RoleChange, ...]:
        """Roles that existed as they should be."""
        return self._in_state("kept")

    @property
    def changed(self) -> tuple[RoleChange, ...]:
        """Roles that existed with more or fewer privileges."""
        return self._in_state("changed")

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the changes by state (``created``, ``kept``, ``changed``)."""
        return {
            name: [asdict(change) for change in getattr(self, name)]
            for name in ("created", "kept", "changed")
        }

    def _in_state(self, state: RoleState) -> tuple[RoleChange, ...]:
        return tuple(change for change in self.changes if change.state == state)


def credit_roles(
    database: str, names: CollectionNames | None = None, users: UserMapping | None = None
) -> tuple[Role, ...]:
    """Return a role for each kind of work, from running the application to restoring a backup.

    ``names`` and ``users`` are those of the configuration, or None for the defaults. Raises
    ConfigurationError if MongoDB doesn't allow the database's name.
    """
    check_database(database)
    names = CollectionNames() if names is None else check_kind("names", names, CollectionNames)
    users = None if users is None else check_kind("users", users, UserMapping)
    kinds = (
        (
            "creditRuntime",
            "for the application, and migrate open-accounts: all of CreditLedger but delete_user",
            _work(names),
        ),
        ("creditArchiver", "for the job that moves old rows", _archiving(names)),
        ("creditEraser", "for delete_user, which takes all rows of a user", _erasing(names, users)),
        (
            "creditSetup",
            "for ensure_indexes, before a deployment; it can delete rows by a TTL index",
            _setup(names),
        ),
        ("creditReader", "for reports and checks: writes nothing", _reading(names)),
        (
            "creditBackup",
            "for backups; it can read the whole database, as a change stream needs",
            _backing_up(),
        ),
        (
            "creditRestorer",
            "for restores: it can drop and write all of the ledger's collections",
            _restoring(names),
        ),
        (
            "creditImporter",
            "for import credit-sdk; it can change and remove transactions",
            _importing(names),
        ),
    )
    return tuple(
        Role(name, database, purpose, tuple(Privilege(database, *item) for item in granted.items()))
        for name, purpose, granted in kinds
    )


async def missing_rights(ledger: LedgerDatabase) -> tuple[str, ...]:
    """Return what the connected user lacks to charge, refund and grant, as ``action on place``.

    Empty if the user has the rights of ``creditRuntime``, but for those of the FastAPI integration,
    or if the server has no access control.
    Raises PyMongoError.
    """
    status = await ledger.ask({"connectionStatus": 1, "showPrivileges": True})
    found = status["authInfo"]
    if not found["authenticatedUsers"]:
        return ()
    privileges = found["authenticatedUserPrivileges"]
    return tuple(
        f"{action} on {ledger.name}.{collection}"
        for collection, actions in _work(ledger.names).items()
        if collection != ledger.names.paid_requests
        for action in actions
        if not any(_grants(each, action, ledger.name, collection) for each in privileges)
    )


def _grants(privilege: Mapping[str, Any], action: str, database: str, collection: str) -> bool:
    resource = privilege["resource"]
    if action not in privilege["actions"] and "anyAction" not in privilege["actions"]:
        return False
    if resource.get("anyResource"):
        return True
    # "" stands for any. Without these names, the resource is of another kind.
    return resource.get("db") in (database, "") and resource.get("collection") in (collection, "")


async def ensure_roles(
    database: AnyDatabase,
    names: CollectionNames,
    users: UserMapping | None = None,
    *,
    dry_run: bool = False,
) -> RoleReport:
    """Create the database's roles, or correct them if they exist.

    You can run it again. An existing role loses additional privileges and inherited roles. Its
    authentication restrictions and its users stay. With ``dry_run``, nothing is written. Needs the
    role userAdmin on the database. Raises PyMongoError.
    """
    ledger = LedgerDatabase.of(database, names, users, names_are="names")
    dry_run = check_flag("dry_run", dry_run)
    changes = [
        await _ensure_role(ledger, role, dry_run=dry_run)
        for role in credit_roles(ledger.name, names, users)
    ]
    return RoleReport(tuple(changes))


async def _ensure_role(database: LedgerDatabase, role: Role, *, dry_run: bool) -> RoleChange:
    wanted = _granted(each.to_dict() for each in role.privileges)
    while True:
        found = await database.ask(
            {"rolesInfo": {"role": role.name, "db": database.name}, "showPrivileges": True}
        )
        if found["roles"]:
            break
        try:
            if not dry_run:
                await database.ensure(role.create_command())
        except OperationFailure as error:
            # Another process has created the role in the meantime: look again.
            if error.code != _ROLE_EXISTS:
                raise
        else:
            return RoleChange(role.name, "created", added=wanted)
    [existing] = found["roles"]
    # These include the role's own privileges.
    has = _granted(existing["inheritedPrivileges"])
    added = tuple(each for each in wanted if each not in has)
    removed = tuple(each for each in has if each not in wanted)
    if not (added or removed or existing["roles"]):
        return RoleChange(role.name, "kept")
    if not dry_run:
        await database.ensure(role.update_command())
    return RoleChange(role.name, "changed", added, removed)


def _granted(privileges: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return each privilege as ``action on place``, sorted, so that equal roles compare equal."""
    granted = set()
    for privilege in privileges:
        resource = privilege["resource"]
        database, collection = resource.get("db"), resource.get("collection")
        # Without a database, the resource is of another kind, such as {"cluster": true}.
        place = str(dict(resource)) if database is None else f"{database}.{collection}".rstrip(".")
        granted |= {f"{action} on {place}" for action in privilege["actions"]}
    return tuple(sorted(granted))


# What each kind of work does


def _work(names: CollectionNames) -> dict[str, tuple[str, ...]]:
    # Records are never changed. An expired key's record is replaced, since TTL runs a minute late.
    return {
        names.users: ("find", "insert", "update"),
        names.transactions: ("find", "insert"),
        names.audit_logs: ("find", "insert"),
        names.idempotency_records: ("find", "insert", "remove"),
        names.holds: ("find", "insert", "update"),
        names.turns: ("find", "insert", "update"),
        names.paid_requests: ("find", "insert", "update"),
        # To know which users are being erased: their old keys and charges no longer count.
        names.erasures: _READ,
        # For refunds of archived charges, the archived history, and repairs.
        names.transactions_archive: _READ,
        names.audit_logs_archive: _READ,
        names.holds_archive: _READ,
        names.archive_borders: _READ,
        **_OPENING,
    }


def _archiving(names: CollectionNames) -> dict[str, tuple[str, ...]]:
    return {
        names.users: _READ,
        # The archive moves nothing of users who are being erased.
        names.erasures: _READ,
        **dict.fromkeys((names.transactions, names.audit_logs, names.holds), ("find", "remove")),
        **dict.fromkeys(
            (names.transactions_archive, names.audit_logs_archive, names.holds_archive),
            ("createIndex", "find", "insert"),
        ),
        **dict.fromkeys(
            (names.archive_borders, names.archive_manifests), ("find", "insert", "update")
        ),
        **_OPENING,
    }


def _erasing(names: CollectionNames, users: UserMapping | None) -> dict[str, tuple[str, ...]]:
    taken = (
        *(names.users, names.transactions, names.audit_logs, names.idempotency_records),
        *(names.transactions_archive, names.audit_logs_archive, names.archive_borders),
        *(names.holds, names.holds_archive, names.paid_requests),
    )
    return {
        **dict.fromkeys(taken, ("find", "remove")),
        names.erasures: ("find", "insert", "remove", "update"),
        # Documents of the application stay, without the account.
        **({} if users is None else {names.users: ("find", "remove", "update")}),
        **_OPENING,
    }


def _setup(names: CollectionNames) -> dict[str, tuple[str, ...]]:
    # The ledger itself creates the turns when it needs them, and they have no index.
    kept = (
        *(names.users, names.transactions, names.audit_logs, names.idempotency_records),
        names.holds,
    )
    actions = ("collMod", "createCollection", "createIndex", "listIndexes")
    return {
        _DATABASE: ("listCollections",),
        # To find TTL indexes that would make the server delete rows of the ledger.
        **dict.fromkeys(names.model_dump().values(), ("listIndexes",)),
        **dict.fromkeys((*kept, names.paid_requests), actions),
        SETTINGS_COLLECTION: (*actions[1:], "find", "insert", "update"),
    }


def _reading(names: CollectionNames) -> dict[str, tuple[str, ...]]:
    kept = (*names.model_dump().values(), SETTINGS_COLLECTION)
    # To watch what is charged and refused.
    followed = (names.transactions, names.audit_logs)
    return {
        **dict.fromkeys(kept, (*_READ, "listIndexes")),
        **dict.fromkeys(followed, ("changeStream", *_READ, "listIndexes")),
        # Studio shows the last backups.
        BACKUPS_COLLECTION: _READ,
    }


def _backing_up() -> dict[str, tuple[str, ...]]:
    return {
        _DATABASE: ("changeStream", "find", "listCollections", "listIndexes"),
        BACKUPS_COLLECTION: ("find", "insert", "update"),
    }


def _restoring(names: CollectionNames) -> dict[str, tuple[str, ...]]:
    filled = (*names.model_dump().values(), MIGRATIONS_COLLECTION, IMPORTS_COLLECTION)
    made = ("createCollection", "createIndex", "find", "insert", "update")
    actions = (*made, "collMod", "dropCollection", "listIndexes", "remove")
    return {
        **dict.fromkeys(filled, actions),
        SETTINGS_COLLECTION: (*made, "listIndexes"),
        BACKUPS_COLLECTION: ("find", "remove"),
    }


def _importing(names: CollectionNames) -> dict[str, tuple[str, ...]]:
    return {
        names.users: ("find", "insert", "update"),
        # Keys are added to imported rows. If rows were committed late in the deployment, the import
        # removes the user's imported rows, and writes them in the right order.
        names.transactions: ("find", "insert", "remove", "update"),
        names.audit_logs: ("find", "insert", "remove"),
        names.idempotency_records: ("find", "insert"),
        IMPORTS_COLLECTION: ("find", "insert", "update"),
        # Users who are being erased are left out.
        names.erasures: _READ,
        # To count imported rows that were archived.
        **dict.fromkeys((names.transactions_archive, names.audit_logs_archive), _READ),
        **_OPENING,
    }
