"""The runtime role suffices for an application on FastAPI, and it needs each of its privileges."""

from __future__ import annotations

from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI

from credit_mongo import CollectionNames, CreditConfig, CreditLedger, StorageError
from credit_mongo.integrations.fastapi import Charge, Paid, add_credit_handlers, credit_lifespan
from credit_mongo.maintenance.roles import credit_roles, ensure_roles
from tests.integration.access_control import GuardedReplicaSet
from tests.integration.promises import Client, rows
from tests.integration.roles.grants import APP, WORK, config, without


def current_user() -> str:
    """Return the user to charge."""
    return "u"


async def ask(client: Client, settings: CreditConfig, *asked: tuple[int, str]) -> list[int]:
    """Send requests to the client's application, and return the statuses.

    It divides by the number.
    """
    app = FastAPI(lifespan=credit_lifespan(settings, database=client[APP], indexes=False))
    add_credit_handlers(app)

    @app.post("/{part}")
    async def divide(paid: Annotated[Paid, Charge("post", user=current_user)], part: int) -> float:
        return paid.cost / part

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as browser,
    ):
        await app.state.credit_mongo.paid_requests.settle_abandoned()
        return [
            (await browser.post(f"/{part}", headers={"Idempotency-Key": key})).status_code
            for part, key in asked
        ]


async def test_the_roles_are_enough_for_a_fastapi_application(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """The runtime role pays for requests and settles them. The eraser's role erases them."""
    names = CollectionNames(**{name: f"our_{name}" for name in CollectionNames.model_fields})
    settings = config(collections=names)
    await ensure_roles(administrator[APP], names)
    async with guarded.client_of("creditSetup", APP) as client:
        await CreditLedger(client[APP], settings).ensure_indexes()
    async with guarded.client_of("creditRuntime", APP) as client:
        refused = FastAPI(lifespan=credit_lifespan(settings, database=client[APP]))
        with pytest.raises(StorageError, match="Unauthorized"):
            async with refused.router.lifespan_context(refused):
                pytest.fail("it may not make the ledger's indexes")
        async with CreditLedger(client[APP], settings) as ledger:
            await ledger.create_user("u", credits=50)
            asked = [(2, "a"), (2, "a"), (0, "b"), (0, "b"), (1, "c")]
            assert await ask(client, settings, *asked) == [200, 409, 500, 500, 200]
            assert await ledger.get_balance("u") == 30
    kept = await rows(administrator[APP], names.paid_requests)
    assert sorted(row["state"] for row in kept) == ["completed", "completed", "released"]
    async with guarded.client_of("creditEraser", APP) as client:
        erasure = await CreditLedger(client[APP], settings).delete_user("u")
    assert erasure.paid_requests == 3
    assert await rows(administrator[APP], names.paid_requests) == []


@pytest.mark.parametrize("action", sorted(WORK["creditRuntime"]["paid_requests"]))
async def test_without_any_one_privilege_no_request_is_paid(
    guarded: GuardedReplicaSet, administrator: Client, action: str
) -> None:
    """Each privilege is needed, and without it nothing is charged."""
    runtime = credit_roles(APP)[0]
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        assert await ask(client, config(), (1, "a")) == [200]
        privileges = without(runtime, "paid_requests", action)
        await administrator[APP].command(
            {"updateRole": runtime.name, "privileges": privileges, "roles": []}
        )
        if action == "find":
            with pytest.raises(StorageError, match="Unauthorized"):
                await ask(client, config(), (1, "b"))
        else:
            assert await ask(client, config(), (1, "b")) == [503]
        assert await ledger.get_balance("u") == 40
