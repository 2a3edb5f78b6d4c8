"""A PostgreSQL and a MariaDB on loopback, shared by all tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
import pytest_asyncio
import sqlalchemy as sa

from benchmarks.mariadb_server import MariaDbServer
from benchmarks.own_server import OwnServer
from benchmarks.peers.postgresql_server import PostgresServer

KINDS: Final = ("postgresql", "mariadb")
_SCHEMES: Final = {"postgresql": "postgresql", "mariadb": "mysql"}
_DRIVERS: Final = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql"}


@dataclass(frozen=True)
class Server:
    """A server of one kind, for a test."""

    kind: str
    own: OwnServer
    engine: sa.Engine

    @property
    def url(self) -> str:
        """The address as Prisma's schemas have it."""
        return self.address(self.own.password)

    def address(self, password: str, database: str | None = None) -> str:
        """An address with another password or database."""
        name = _database_of(self.kind) if database is None else database
        login = f"{self.own.user}:{password}@127.0.0.1:{self.own.port}"
        return f"{_SCHEMES[self.kind]}://{login}/{name}"

    def execute(self, *statements: str, values: Any = None) -> None:
        """Run statements, each with the same values."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement), values or {})


def _database_of(kind: str) -> str:
    return "postgres" if kind == "postgresql" else MariaDbServer.database


@pytest_asyncio.fixture(scope="session")
async def postgresql() -> AsyncIterator[OwnServer]:
    """One server for all tests."""
    async with PostgresServer(0.1, 20) as server:
        yield server


@pytest_asyncio.fixture(scope="session")
async def mariadb() -> AsyncIterator[OwnServer]:
    """One server for all tests."""
    async with MariaDbServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each of the servers, without a table."""
    yield from _emptied(request.param, request.getfixturevalue(request.param))


@pytest.fixture
def postgres(postgresql: OwnServer) -> Iterator[Server]:
    """The PostgreSQL, without a table."""
    yield from _emptied("postgresql", postgresql)


@pytest.fixture
def maria(mariadb: OwnServer) -> Iterator[Server]:
    """The MariaDB, without a table."""
    yield from _emptied("mariadb", mariadb)


def _emptied(kind: str, own: OwnServer) -> Iterator[Server]:
    login = f"{own.user}:{own.password}@127.0.0.1:{own.port}"
    engine = sa.create_engine(f"{_DRIVERS[kind]}://{login}/{_database_of(kind)}")
    there = sa.MetaData()
    there.reflect(engine)
    there.drop_all(engine)
    yield Server(kind, own, engine)
    engine.dispose()
