"""The addresses of databases: SQLAlchemy's, MongoDB's, and those that Prisma's schemas have."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from credit_mongo.errors import LedgerImportError

__all__ = ["SourceUrl", "parse_url"]

_DRIVERS: Final = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "cockroachdb": "cockroachdb+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "sqlserver": "mssql+pyodbc",
    "mssql": "mssql+pyodbc",
    "sqlite": "sqlite",
}
_KNOWN: Final = "postgresql, mysql, mariadb, sqlite, sqlserver, cockroachdb and mongodb"
# Prisma's own parameters, which no driver knows.
_PRISMAS: Final = frozenset(
    {
        *("schema", "connection_limit", "pool_timeout", "pgbouncer", "statement_cache_size"),
        *(
            "socket_timeout",
            "connect_timeout",
            "sslaccept",
            "sslidentity",
            "sslcert",
            "sslpassword",
        ),
    }
)
_FORM: Final = re.compile(r"[a-z0-9+]{1,40}:.+", re.IGNORECASE | re.DOTALL)


class SourceUrl(NamedTuple):
    """An address that the driver takes. Don't show ``url``: it may have a password."""

    url: str
    schema: str | None
    """Prisma's ``schema`` parameter."""

    @property
    def is_mongodb(self) -> bool:
        return self.url.startswith(("mongodb:", "mongodb+srv:"))


def parse_url(text: str) -> SourceUrl:
    """Read an address. Raises LedgerImportError, without showing it."""
    if not _FORM.fullmatch(text):
        raise LedgerImportError(
            f"the address is not like DIALECT://USER:PASSWORD@HOST/DATABASE: "
            f"it begins with one of {_KNOWN}"
        )
    scheme, _, rest = text.partition(":")
    scheme = scheme.lower()
    if scheme in ("mongodb", "mongodb+srv"):
        return SourceUrl(f"{scheme}:{rest}", None)
    if scheme == "sqlite":
        # A path is no part of an address that may be encoded.
        return SourceUrl(text if rest.startswith("///") else f"sqlite:///{rest}", None)
    if scheme == "file":
        return SourceUrl(f"sqlite:///{rest.partition('?')[0].removeprefix('//')}", None)
    if scheme.partition("+")[0] not in _DRIVERS:
        raise LedgerImportError(f"{scheme!r:.40} is not supported: use one of {_KNOWN}")
    driver = _DRIVERS.get(scheme, scheme)
    if scheme in ("sqlserver", "mssql") and ";" in rest:
        return _from_sql_server(driver, rest)
    try:
        parts = urlsplit(f"x:{rest}")
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        raise LedgerImportError("the address is malformed: check its host and brackets") from None
    schema = parameters.get("schema")
    kept = {name: value for name, value in parameters.items() if name not in _PRISMAS}
    if driver in ("mysql+pymysql", "mariadb+pymysql"):
        kept.setdefault("charset", "utf8mb4")
    left = urlunsplit(parts._replace(query=urlencode(kept), fragment=""))
    return SourceUrl(f"{driver}:{left.removeprefix('x:')}", schema or None)


def _from_sql_server(driver: str, rest: str) -> SourceUrl:
    """Read Prisma's form: ``sqlserver://HOST:PORT;database=D;user=U;password=P``."""
    host, *settings = rest.removeprefix("//").split(";")
    given = {
        name.strip().lower(): value
        for name, _, value in (each.partition("=") for each in settings if each)
    }
    user = quote(unquote(given.get("user", given.get("username", ""))), safe="")
    password = quote(given.get("password", ""), safe="")
    options = {"driver": given.get("driver", "ODBC Driver 18 for SQL Server")}
    if "encrypt" in given:
        options["Encrypt"] = "yes" if given["encrypt"] == "true" else "no"
    if given.get("trustservercertificate") == "true":
        options["TrustServerCertificate"] = "yes"
    login = f"{user}:{password}@" if user else ""
    database = quote(given.get("database", ""), safe="")
    address = f"{driver}://{login}{host}/{database}?{urlencode(options)}"
    return SourceUrl(address, given.get("schema"))
