"""An application that already has users, whose accounts are kept in their documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

from bson import Binary, ObjectId
from bson.binary import UuidRepresentation

from credit_mongo import (
    CollectionNames,
    CreditConfig,
    CreditLedger,
    UserMapping,
)
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.storage.users import StoredUsers
from tests.integration.operations.accounts import Clock, one, prices
from tests.integration.promises import Database, Row, rows

FIELDS: Row = {
    "credits": "tokenBalance",
    "seq": "tokenEntries",
    "membership_tier": "plan",
    "membership_expires_at": "planEnds",
    "updated_at": "tokensChanged",
    "extras": "tokenParts",
}
MAPPED = frozenset({"tokenBalance", "tokenEntries", "plan", "planEnds", "tokensChanged"})
EXTRAS = "tokenParts"
NAMES = CollectionNames(users="people")
SIGNED_UP = datetime(2020, 2, 2, tzinfo=timezone.utc)
PROFILE: Row = {
    "email": "ann@example.org",
    "credits": "not the ledger's",
    "membershipTier": 7,
    "seq": 0.5,
    "nested": {"tokenBalance": 9, "$set": 1},
    "createdAt": SIGNED_UP,
    "updatedAt": "yesterday",
}
UUIDS = {
    "uuid": UuidRepresentation.STANDARD,
    "uuid, as the client leaves it open": UuidRepresentation.UNSPECIFIED,
    "uuid of old": UuidRepresentation.PYTHON_LEGACY,
}


@dataclass(frozen=True)
class Application:
    """An application with a collection of people."""

    database: Database
    config: CreditConfig
    clock: Clock
    new_id: Callable[[], tuple[str, Any]]
    """Another id, as the API has it and as it is stored."""

    @property
    def users(self) -> UserMapping:
        """How accounts are mapped to people."""
        assert self.config.users is not None
        return self.config.users

    @property
    def books(self) -> Row:
        """Options to verify or repair books whose clock is years ahead."""
        return {**self.where, "max_clock_skew_seconds": None}

    @property
    def where(self) -> Row:
        """Options that tell a job where the application's users are."""
        return {"collections": NAMES, "users": self.users}

    def ledger(self) -> CreditLedger:
        """Return a ledger on the application's people."""
        return CreditLedger(self.database, self.config, clock=self.clock)

    async def add_person(self, **fields: Any) -> tuple[str, Any]:
        """Add a person without an account."""
        user_id, stored = self.new_id()
        await self.database.command(
            {
                "insert": "people",
                "documents": [{"_id": stored, **PROFILE, **fields}],
                "bypassDocumentValidation": True,
            }
        )
        return user_id, stored

    async def forget(self, user_id: str, stored: Any) -> None:
        """Remove a person and its rows, so that other tests find nothing wrong."""
        await self.database["people"].delete_one({"_id": stored})
        for collection in ("transactions", "audit_logs", "idempotency_records"):
            await self.database[collection].delete_many({"userId": user_id})

    async def person(self, stored: Any) -> Row:
        """Return the stored person without its id."""
        found = await one(self.database, "people", _id=stored)
        del found["_id"]
        return found


def new_id_of(id_type: str) -> Callable[[], tuple[str, Any]]:
    def new_id() -> tuple[str, Any]:
        if id_type == "string":
            text = f"person-{uuid4().hex[:12]}"
            return text, text
        if id_type == "objectId":
            object_id = ObjectId()
            return str(object_id), object_id
        identifier = uuid4()
        representation = UUIDS[id_type] or UuidRepresentation.STANDARD
        return str(identifier), Binary.from_uuid(identifier, representation)

    return new_id


def mapped(id_type: str) -> CreditConfig:
    """Return the prices of the operations' tests, with accounts kept in people."""
    users = {"id_type": "uuid" if id_type in UUIDS else id_type, **FIELDS}
    return prices(collections=NAMES, users=users)


async def check_books(application: Application) -> None:
    """Run every check of a verification, and add up the balances by hand."""
    found = await verify(application.database, **application.books, key_ttl_seconds=100)
    assert found.findings == ()
    reader = StoredUsers.of(application.users, application.database)
    for person in await rows(application.database, "people"):
        if "tokenBalance" in person:
            user_id = reader.user_id_of(person)
            chain = await rows(application.database, "transactions", userId=user_id)
            assert person["tokenBalance"] == sum(row["amount"] for row in chain)
            assert sorted(row["seq"] for row in chain) == [*range(1, person["tokenEntries"] + 1)]
