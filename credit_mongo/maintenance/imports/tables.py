"""The four tables of a Credit SDK deployment, and how to find them in a database. Pure.

Prisma names tables after its models, and columns after their fields. Deployments that wrote their
tables by hand often have plurals and snake_case. A mapping names what has another name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from credit_mongo.errors import InvalidRequestError, LedgerImportError

__all__ = ["AUDIT_LOGS", "KEYS", "TRANSACTIONS", "USERS", "Kind", "Names", "Table", "find_tables"]

Kind: TypeAlias = Literal["users", "transactions", "audit_logs", "idempotency_records"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
USERS, TRANSACTIONS, AUDIT_LOGS, KEYS = KINDS

_TABLES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "users": ("User", "users", "user", "Users", "CreditUser", "credit_users"),
    "transactions": (
        *("Transaction", "transactions", "transaction", "Transactions"),
        *("CreditTransaction", "credit_transactions"),
    ),
    "audit_logs": (
        *("AuditLog", "audit_logs", "auditLogs", "audit_log", "AuditLogs"),
        *("CreditAuditLog", "credit_audit_logs"),
    ),
    "idempotency_records": (
        *("IdempotencyRecord", "idempotency_records", "idempotencyRecords", "idempotency_record"),
        *("IdempotencyRecords", "credit_idempotency_records"),
    ),
}
_REQUIRED: Final[Mapping[Kind, tuple[str, ...]]] = {
    "users": ("id", "credits"),
    "transactions": (
        *("id", "user_id", "action", "amount", "balance_before", "balance_after", "created_at"),
    ),
    "audit_logs": ("id", "user_id", "action", "status", "created_at"),
    "idempotency_records": ("key", "result", "expires_at"),
}
_OPTIONAL: Final[Mapping[Kind, tuple[str, ...]]] = {
    "users": ("membership_tier", "membership_expires_at", "created_at", "updated_at"),
    "transactions": ("metadata",),
    "audit_logs": ("metadata", "error_message"),
    "idempotency_records": ("created_at",),
}
_MAY_BE_MISSING: Final = ("audit_logs", "idempotency_records")
_MOST_NAMED: Final = 12


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it was found. ``columns`` has the column of each field that there is."""

    kind: Kind
    name: str
    columns: Mapping[str, str]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields, in their order."""
        return tuple(self.columns)


@dataclass(frozen=True, slots=True)
class Names:
    """Names that differ from the usual ones."""

    tables: Mapping[Kind, str]
    columns: Mapping[Kind, Mapping[str, str]]
    without: frozenset[Kind]

    @classmethod
    def of(cls, mapping: Mapping[str, str], without: Collection[str] = ()) -> Names:
        """Read ``{"users": "Customer", "users.credits": "points"}``. Raises InvalidRequestError."""
        tables: dict[Kind, str] = {}
        columns: dict[Kind, dict[str, str]] = {}
        for path, name in mapping.items():
            table, _, field = path.partition(".")
            kind = _kind(table, "names", KINDS)
            if not name or (field and field not in _REQUIRED[kind] + _OPTIONAL[kind]):
                fields = ", ".join(_REQUIRED[kind] + _OPTIONAL[kind])
                raise InvalidRequestError(
                    "names", f"must be like {kind}=TABLE or {kind}.FIELD=COLUMN, of {fields}"
                )
            if field:
                columns.setdefault(kind, {})[field] = name
            else:
                tables[kind] = name
        left_out = frozenset(_kind(each, "without", _MAY_BE_MISSING) for each in without)
        return cls(tables, columns, left_out)


def _kind(text: str, option: str, allowed: Sequence[str]) -> Kind:
    for kind in KINDS:
        if text == kind and kind in allowed:
            return kind
    raise InvalidRequestError(option, f"must name one of {', '.join(allowed)}, not {text!r:.60}")


def find_tables(
    names: Names,
    there: Collection[str],
    columns_of: Callable[[str], Collection[str]],
    *,
    id_column: str = "id",
    are_made_when_needed: bool = False,
) -> dict[Kind, Table]:
    """Return the tables. ``there`` are the names of all, ``columns_of`` the columns of one.

    ``are_made_when_needed``: whether a table may be missing because it has no row yet.

    Raises LedgerImportError, which says what is missing and what was looked for.
    """
    found: dict[Kind, Table] = {}
    for kind in KINDS:
        if kind in names.without:
            continue
        is_usual = kind in _MAY_BE_MISSING and kind not in names.tables
        if are_made_when_needed and is_usual and not set(_TABLES[kind]) & set(there):
            continue
        name = _table(kind, names, there)
        columns = columns_of(name)
        own = names.columns.get(kind, {})
        at: dict[str, str] = {}
        for field in (*_REQUIRED[kind], *_OPTIONAL[kind]):
            wanted = (own[field],) if field in own else _column_names(field, id_column)
            column = next((each for each in wanted if each in columns), None)
            if column is not None:
                at[field] = column
            elif field in own or field in _REQUIRED[kind]:
                raise LedgerImportError(
                    f"the table {name!r} has no column {' or '.join(map(repr, wanted))}. "
                    f"It has {_listed(columns)}. Name the right one: "
                    f"--map {kind}.{field}=COLUMN"
                )
        found[kind] = Table(kind, name, at)
    return found


def _table(kind: Kind, names: Names, there: Collection[str]) -> str:
    wanted = (names.tables[kind],) if kind in names.tables else _TABLES[kind]
    found = next((each for each in wanted if each in there), None)
    if found is not None:
        return found
    leave_out = f", or leave it out: --without {kind}" if kind in _MAY_BE_MISSING else ""
    raise LedgerImportError(
        f"there is no table for {kind.replace('_', ' ')}: looked for "
        f"{', '.join(map(repr, wanted))}. There are {_listed(there)}. "
        f"Name the right one: --map {kind}=TABLE{leave_out}"
    )


def _listed(names: Collection[str]) -> str:
    shown = [f"{each!r:.80}" for each in sorted(names)[:_MOST_NAMED]]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(shown) or 'none'}{more}"


def _column_names(field: str, id_column: str) -> tuple[str, ...]:
    if field == "id":
        return (id_column,) if id_column == "id" else (id_column, "id")
    if field == "key" and id_column != "id":
        return (id_column, "key")
    first, *rest = field.split("_")
    camel = first + "".join(each.capitalize() for each in rest)
    return (camel,) if camel == field else (camel, field)
