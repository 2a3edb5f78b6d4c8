"""A server with access control, with the roles and a user for each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from bson import Int64

from credit_mongo import CreditLedger
from credit_mongo.maintenance.roles import ensure_roles
from tests.integration.access_control import ADMINISTRATOR, GuardedReplicaSet, create_user_with
from tests.integration.promises import NAMES, Client
from tests.integration.roles.grants import APP, OTHER, ROLES, config


@pytest_asyncio.fixture(scope="package")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuardedReplicaSet]:
    """A server with access control, and an administrator."""
    async with GuardedReplicaSet(tmp_path_factory.mktemp("guarded")) as server:
        await server.create_administrator()
        yield server


@pytest_asyncio.fixture(scope="package")
async def administrator(server: GuardedReplicaSet) -> AsyncIterator[Client]:
    """A client that may do everything."""
    async with server.client_of(ADMINISTRATOR) as client:
        yield client


@pytest_asyncio.fixture
async def guarded(
    server: GuardedReplicaSet, administrator: Client
) -> AsyncIterator[GuardedReplicaSet]:
    """The server with a database's roles, a user for each, and the setup done by its role."""
    await ensure_roles(administrator[APP], NAMES)
    for role in ROLES:
        await create_user_with(administrator, APP, role, [role], server.password)
    async with server.client_of("creditSetup", APP) as client:
        report = await CreditLedger(client[APP], config()).ensure_indexes()
        assert not report.conflicts
    for database in (APP, OTHER):
        await administrator[database]["secrets"].insert_one({"_id": "secret"})
        await administrator[database]["users"].insert_one({"_id": "theirs", "credits": Int64(7)})
    await administrator[APP]["users"].delete_one({"_id": "theirs"})
    yield server
    for database in (APP, OTHER):
        await administrator[database].command({"dropAllUsersFromDatabase": 1})
        await administrator[database].command({"dropAllRolesFromDatabase": 1})
        await administrator.drop_database(database)
