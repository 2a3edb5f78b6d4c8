"""Applications that already have users, for the tests of several modules."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions

from credit_mongo import (
    CreditLedger,
)
from tests.integration.existing_users import (
    UUIDS,
    Application,
    mapped,
    new_id_of,
)
from tests.integration.operations.accounts import Clock
from tests.integration.promises import Client, Database, Row


@pytest_asyncio.fixture(scope="module", params=["string", "objectId", *UUIDS])
async def people_database(
    client: Client, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[str, Database]]:
    """A database of people whose ids have one type, shared by the tests of a module."""
    options: CodecOptions[Row] = CodecOptions(
        tz_aware=True, uuid_representation=UUIDS.get(request.param, UuidRepresentation.UNSPECIFIED)
    )
    database = client.get_database(f"test_{uuid4().hex[:12]}", options)
    async with CreditLedger(database, mapped(request.param)) as ledger:
        assert not (await ledger.ensure_indexes()).conflicts
    yield request.param, database
    await client.drop_database(database.name)


@pytest.fixture
def application(people_database: tuple[str, Database]) -> Application:
    """An application with ids of each type."""
    id_type, database = people_database
    return Application(database, mapped(id_type), Clock(), new_id_of(id_type))


@pytest_asyncio.fixture
async def isolated(database: Database) -> Application:
    """An application with ObjectIds, and a database of the test's isolated_application."""
    application = Application(database, mapped("objectId"), Clock(), new_id_of("objectId"))
    async with application.ledger() as ledger:
        await ledger.ensure_indexes()
    return application
