"""A deployment in a SQL database, read through SQLAlchemy.

Rows come in pages by their ids, so that memory is bounded with every driver. Columns are read
without types: each value is what the driver gives, and ``values`` reads it exactly.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final, NamedTuple

from credit_mongo.errors import LedgerImportError
from credit_mongo.extras import missing
from credit_mongo.maintenance.imports.source import (
    SourceAudit,
    SourceKey,
    SourceTransaction,
    SourceUser,
)
from credit_mongo.maintenance.imports.source_urls import SourceUrl
from credit_mongo.maintenance.imports.tables import Kind, Names, Table, find_tables
from credit_mongo.maintenance.imports.values import ValueRefusedError, moment_of, number_of
from credit_mongo.storage.database import LedgerDatabase

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
    from sqlalchemy.sql.elements import ColumnElement
except ModuleNotFoundError as _error:
    raise missing(_error, "import-sql") from None

__all__ = ["SqlSource", "Statements"]

_FETCHED: Final = 2000
# Snapshots that don't block writers. SQL Server has them only where they are allowed.
_SNAPSHOTS: Final = {
    "postgresql": "REPEATABLE READ",
    "mysql": "REPEATABLE READ",
    "mariadb": "REPEATABLE READ",
    "cockroachdb": "SERIALIZABLE",
}
_UTC: Final = timezone.utc
# The end of a text that names another zone than UTC.
_OTHER_OFFSET: Final = re.compile(r":\d\d(\.\d+)?[+-](?!00:?00$)\d\d(:?\d\d)?$")
_CONNECT_SECONDS: Final = 10
_TIMEOUTS: Final = {"postgresql": "connect_timeout", "mysql": "connect_timeout"}


class SqlSource:
    """Reads a database. Don't use it in two threads at once."""

    def __init__(self, url: SourceUrl, names: Names, zone: tzinfo) -> None:
        """``zone``: of dates without one."""
        self._names = names
        self._zone = zone
        self._schema = url.schema
        try:
            self._url = sa.make_url(url.url)
            self._engine = self._create_engine()
        except NoSuchModuleError as error:
            dialect = url.url.partition(":")[0]
            raise LedgerImportError(f"{dialect} needs another package: {error}") from None
        except ModuleNotFoundError as error:
            raise LedgerImportError(f"install the driver {error.name!r}") from None
        except (ArgumentError, ValueError, TypeError):
            raise LedgerImportError("the address is malformed: check host, port and name") from None
        self._connection: sa.Connection | None = None
        self._statements: Statements | None = None

    def _create_engine(self) -> sa.Engine:
        dialect = self._url.get_backend_name()
        options: dict[str, Any] = {}
        if dialect in _SNAPSHOTS:
            options["isolation_level"] = _SNAPSHOTS[dialect]
        timeout = _TIMEOUTS.get("mysql" if dialect == "mariadb" else dialect)
        if timeout is not None and timeout not in self._url.query:
            options["connect_args"] = {timeout: _CONNECT_SECONDS}
        if dialect == "sqlite":
            # Never create a file: a mistyped name would look like an empty deployment.
            path = self._url.database or ""
            if path.startswith("file:"):
                raise LedgerImportError("give the file's name, not a file: address")
            self._url = sa.make_url("sqlite://").set(
                database=f"file:{_escaped(path)}", query={"mode": "ro", "uri": "true"}
            )
            # Connections are used by one thread after the other.
            options["connect_args"] = {"check_same_thread": False}
        return sa.create_engine(
            self._url, hide_parameters=True, poolclass=sa.pool.NullPool, **options
        )

    @property
    def name(self) -> str:
        """Dialect, host, port and database."""
        url = self._url
        database = (url.database or "").removeprefix("file:")
        place = (
            "" if url.host is None else f"//{url.host}{'' if url.port is None else f':{url.port}'}/"
        )
        schema = "" if self._schema is None else f" ({self._schema})"
        return f"{url.get_backend_name()}:{place}{database}{schema}"

    def open(self) -> dict[Kind, Table]:
        """Connect, and find the tables."""
        with self._explained("connect"):
            self._connection = self._engine.connect()
            inspector = sa.inspect(self._connection)
            there = set(inspector.get_table_names(self._schema))
            with contextlib.suppress(NotImplementedError):
                there |= set(inspector.get_view_names(self._schema))

            def columns_of(table: str) -> list[str]:
                return [each["name"] for each in inspector.get_columns(table, self._schema)]

            tables = find_tables(self._names, there, columns_of)
        self._statements = Statements(tables, self._schema)
        return tables

    def shared_with(self, database: LedgerDatabase) -> list[str]:  # noqa: ARG002
        """Return nothing: a ledger is in MongoDB."""
        return []

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(SQLAlchemyError):
            if self._connection is not None:
                self._connection.close()
        self._engine.dispose()

    def begin(self) -> None:
        """End the transaction. The next statement begins another one, with its own snapshot."""
        with self._explained("read"):
            connection = self._connected()
            connection.rollback()
            if self._engine.dialect.name == "sqlite":
                # Python's driver begins no transaction for reads.
                connection.exec_driver_sql("BEGIN")

    def count(self, kind: Kind) -> int:
        """Return how many rows a table has."""
        return int(self._value(self._made.count(kind)) or 0)

    def latest(self, kind: Kind, field: str) -> Any:
        """Return the largest value of a column."""
        statement = self._made.latest(kind, field)
        return None if statement is None else self._value(statement)

    def users(self, after: Any, limit: int) -> list[SourceUser]:
        """Return the next users in the order of their ids."""
        rows = self._rows(self._made.users(after, limit))
        return [SourceUser._make(row) for row in rows]

    def users_by_ids(self, ids: Sequence[Any]) -> list[SourceUser]:
        """Return these users."""
        return [SourceUser._make(row) for row in self._rows(self._made.users_by_ids(ids))]

    def changed_users(self, since: datetime, limit: int) -> list[Any] | None:
        """Return the ids of users with rows since a moment."""
        found: dict[Any, None] = {}
        for kind, field in self._made.dated:
            moment = self._like_stored(kind, field, since)
            for (user_id,) in self._rows(self._made.changed(kind, field, moment, limit + 1)):
                found[user_id] = None
            if len(found) > limit:
                return None
        return list(found)

    def transactions(self, user_ids: Sequence[Any], limit: int) -> list[SourceTransaction]:
        """Return up to ``limit`` transactions of these users."""
        rows = self._rows(self._made.of_users("transactions", user_ids, limit))
        return [SourceTransaction._make(row) for row in rows]

    def audit_logs(self, user_ids: Sequence[Any], limit: int) -> list[SourceAudit]:
        """Return up to ``limit`` audit rows of these users."""
        rows = self._rows(self._made.of_users("audit_logs", user_ids, limit))
        return [SourceAudit._make(row) for row in rows]

    def next_transactions(
        self, user_id: Any, after: SourceTransaction | None, limit: int
    ) -> list[SourceTransaction]:
        """Return one user's next transactions."""
        place = None if after is None else (after.created_at, after.id)
        rows = self._rows(self._made.next_of_user("transactions", user_id, place, limit))
        return [SourceTransaction._make(row) for row in rows]

    def next_audit_logs(
        self, user_id: Any, after: SourceAudit | None, limit: int
    ) -> list[SourceAudit]:
        """Return one user's next audit rows."""
        place = None if after is None else (after.created_at, after.id)
        rows = self._rows(self._made.next_of_user("audit_logs", user_id, place, limit))
        return [SourceAudit._make(row) for row in rows]

    def keys(
        self, after: Any, since: datetime | None, now: datetime, limit: int
    ) -> list[SourceKey]:
        """Return the next idempotency records that have not expired."""
        kind: Kind = "idempotency_records"
        expires = self._like_stored(kind, "expires_at", now)
        created = None
        if since is not None:
            created = self._like_stored(kind, "created_at", since)
        rows = self._rows(self._made.keys(after, expires, created, limit))
        return [SourceKey._make(row) for row in rows]

    def count_keys(self, now: datetime) -> int:
        """Return how many idempotency records have not expired."""
        expires = self._like_stored("idempotency_records", "expires_at", now)
        if not isinstance(expires, TextMoment):
            return int(self._value(self._made.count_keys(expires)) or 0)
        # Texts compare by whole seconds.
        rows = self._streamed(self._made.expiries(expires))
        return sum(self._is_later(value, now) for (value,) in rows)

    def _is_later(self, value: Any, now: datetime) -> bool:
        try:
            return moment_of("expiresAt", value, self._zone) > now
        except ValueRefusedError:
            return True  # told when its record was read

    def sum_of_amounts(self) -> Decimal:
        """Return the exact sum of all amounts: the database's, unless it has floats."""
        is_exact = self._engine.dialect.name != "sqlite"
        if is_exact:
            first = self._value(self._made.amounts().limit(1))
            is_exact = not isinstance(first, float | str)
        if is_exact:
            return Decimal(self._value(self._made.sum_of_amounts()) or 0).normalize()
        total = Decimal(0)
        for (amount,) in self._streamed(self._made.amounts()):
            # What is no number was told when its row was read.
            with contextlib.suppress(ValueRefusedError):
                total += number_of("amount", amount)
        return total

    # Running statements

    @property
    def _made(self) -> Statements:
        assert self._statements is not None  # noqa: S101 - it was opened
        return self._statements

    def _connected(self) -> sa.Connection:
        assert self._connection is not None  # noqa: S101 - it was opened
        return self._connection

    def _rows(self, statement: sa.Executable) -> Sequence[sa.Row[Any]]:
        with self._explained("read"):
            return self._connected().execute(statement).all()

    def _streamed(self, statement: sa.Executable) -> Iterator[sa.Row[Any]]:
        """Return any number of rows, with a cursor of the server's."""
        with self._explained("read"):
            options = {"yield_per": _FETCHED}
            yield from self._connected().execute(statement, execution_options=options)

    def _value(self, statement: sa.Executable) -> Any:
        return next((row[0] for row in self._rows(statement)), None)

    def _like_stored(self, kind: Kind, field: str, moment: datetime) -> Any:
        """Return a moment in the form of a column's values, so that the database can compare it."""
        statement = self._made.sample(kind, field)
        stored = None if statement is None else self._value(statement)
        if isinstance(stored, int | float | Decimal):
            return int(moment.timestamp() * 1000)
        if isinstance(stored, str):
            return TextMoment.of(moment, self._zone, stored)
        if isinstance(stored, datetime) and stored.tzinfo is not None:
            return moment
        return moment.astimezone(self._zone).replace(tzinfo=None)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn the driver's errors into one line without the password."""
        try:
            yield
        except SQLAlchemyError as error:
            raise self._as_source_error(error, what) from None
        except (OSError, UnicodeError, ValueError) as error:
            raise self._as_source_error(error, what) from None

    def _as_source_error(self, error: Exception, what: str) -> LedgerImportError:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        password = self._url.password
        if password:
            reason = reason.replace(str(password), "***")
        return LedgerImportError(f"can't {what} {self.name}: {reason:.300}")


def _escaped(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


class TextMoment(NamedTuple):
    """A moment to compare ISO 8601 texts with, which may separate date and time in either way.

    It is at or before the moment itself.
    """

    with_space: str
    with_t: str

    @classmethod
    def of(cls, moment: datetime, zone: tzinfo, stored: str) -> TextMoment:
        """``zone``: of texts without one. ``stored``: one of the texts."""
        if _OTHER_OFFSET.search(stored):
            # Texts in several zones have no order: begin before all of them.
            moment -= timedelta(days=1)
        # Some texts of the column may end with Z.
        begins = min(f"{moment.astimezone(each):%Y-%m-%d %H:%M:%S}" for each in (_UTC, zone))
        return cls(begins, begins.replace(" ", "T"))

    def has_come(self, column: ColumnElement[Any]) -> ColumnElement[bool]:
        """Return the condition that a text is of this moment or later."""
        # A space comes before a T, whatever the time after it.
        same_day = sa.and_(column >= self.with_space, column < self.with_t[:11])
        return sa.or_(same_day, column >= self.with_t)


class Statements:
    """The statements, for any dialect."""

    def __init__(self, tables: dict[Kind, Table], schema: str | None) -> None:
        self._tables = tables
        self._froms = {
            kind: sa.table(
                table.name,
                *(sa.column(name) for name in dict.fromkeys(table.columns.values())),
                schema=schema,
            )
            for kind, table in tables.items()
        }

    @property
    def dated(self) -> list[tuple[Kind, str]]:
        """The columns that show which users have changed."""
        wanted: tuple[tuple[Kind, str], ...] = (
            ("users", "updated_at"),
            ("transactions", "created_at"),
            ("audit_logs", "created_at"),
        )
        return [
            (kind, field)
            for kind, field in wanted
            if kind in self._tables and field in self._tables[kind].columns
        ]

    def count(self, kind: Kind) -> sa.Select[Any]:
        return sa.select(sa.func.count()).select_from(self._froms[kind])

    def latest(self, kind: Kind, field: str) -> sa.Select[Any] | None:
        if kind not in self._tables or field not in self._tables[kind].columns:
            return None
        return sa.select(sa.func.max(self._column(kind, field)))

    def sample(self, kind: Kind, field: str) -> sa.Select[Any] | None:
        if field not in self._tables[kind].columns:
            return None
        column = self._column(kind, field)
        return sa.select(column).where(column.is_not(None)).limit(1)

    def users(self, after: Any, limit: int) -> sa.Select[Any]:
        own_id = self._column("users", "id")
        chosen = self._all("users", SourceUser).order_by(own_id).limit(limit)
        return chosen if after is None else chosen.where(own_id > after)

    def users_by_ids(self, ids: Sequence[Any]) -> sa.Select[Any]:
        return self._all("users", SourceUser).where(self._column("users", "id").in_(ids))

    def changed(self, kind: Kind, field: str, since: Any, limit: int) -> sa.Select[Any]:
        user_id = self._column(kind, "id" if kind == "users" else "user_id")
        return sa.select(user_id).distinct().where(self._from(kind, field, since)).limit(limit)

    def of_users(self, kind: Kind, user_ids: Sequence[Any], limit: int) -> sa.Select[Any]:
        fields = SourceTransaction if kind == "transactions" else SourceAudit
        mine = self._column(kind, "user_id").in_(user_ids)
        return self._all(kind, fields).where(mine).limit(limit)

    def next_of_user(
        self, kind: Kind, user_id: Any, after: tuple[Any, Any] | None, limit: int
    ) -> sa.Select[Any]:
        fields = SourceTransaction if kind == "transactions" else SourceAudit
        moment, row_id = self._column(kind, "created_at"), self._column(kind, "id")
        chosen = self._all(kind, fields).where(self._column(kind, "user_id") == user_id)
        if after is not None:
            at, last = after
            chosen = chosen.where(
                moment >= at, sa.or_(moment > at, sa.and_(moment == at, row_id > last))
            )
        return chosen.order_by(moment, row_id).limit(limit)

    def keys(self, after: Any, expires: Any, created: Any, limit: int) -> sa.Select[Any]:
        kind: Kind = "idempotency_records"
        key = self._column(kind, "key")
        chosen = self._all(kind, SourceKey).where(self._from(kind, "expires_at", expires))
        if created is not None and "created_at" in self._tables[kind].columns:
            chosen = chosen.where(self._from(kind, "created_at", created))
        if after is not None:
            chosen = chosen.where(key > after)
        return chosen.order_by(key).limit(limit)

    def count_keys(self, expires: Any) -> sa.Select[Any]:
        kind: Kind = "idempotency_records"
        return self.count(kind).where(self._column(kind, "expires_at") > expires)

    def expiries(self, after: Any) -> sa.Select[Any]:
        expires_at = self._column("idempotency_records", "expires_at")
        return sa.select(expires_at).where(self._from("idempotency_records", "expires_at", after))

    def amounts(self) -> sa.Select[Any]:
        return sa.select(self._column("transactions", "amount"))

    def sum_of_amounts(self) -> sa.Select[Any]:
        # SQL Server sums 32-bit numbers up in 32 bits.
        amount = sa.cast(self._column("transactions", "amount"), sa.Numeric(38, 10))
        return sa.select(sa.func.sum(amount))

    def _from(self, kind: Kind, field: str, moment: Any) -> ColumnElement[bool]:
        column = self._column(kind, field)
        return moment.has_come(column) if isinstance(moment, TextMoment) else column >= moment

    def _column(self, kind: Kind, field: str) -> ColumnElement[Any]:
        column: ColumnElement[Any] = self._froms[kind].c[self._tables[kind].columns[field]]
        return column

    def _all(self, kind: Kind, fields: type[Any]) -> sa.Select[Any]:
        """Select the fields in the order of the named tuple, with NULL for what there isn't."""
        columns = [
            self._column(kind, field)
            if field in self._tables[kind].columns
            else sa.null().label(f"no_{field}")
            for field in fields._fields
        ]
        return sa.select(*columns).select_from(self._froms[kind])
