"""Documents that other software wrote."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from bson import Int64, ObjectId

from credit_mongo import (
    AccountDataError,
    CreditLedger,
)
from tests.integration.bad_input.methods import FUTURE, METHODS, OTHER_USER, PAGES, USER, call
from tests.integration.promises import Database, Row

STRANGE_FIELDS: list[Row] = [
    {"credits": 1.5},
    {"credits": "5"},
    {"credits": None},
    {"credits": True},
    {"credits": -1},
    {"seq": "1"},
    {"seq": -1},
    {"membershipTier": 5},
    {"membershipTier": {"$ne": None}},
    {"membershipTier": ["premium"]},
    {"membershipExpiresAt": "2099-01-01"},
    {"membershipExpiresAt": 5},
]


async def test_a_foreign_document_stops_only_its_own_user(
    books: CreditLedger, database: Database
) -> None:
    """Every method says what is wrong with the document. Others in the batch never notice."""
    strange = {
        f"strange-{number}": {"credits": Int64(50), "seq": Int64(0), **fields}
        for number, fields in enumerate(STRANGE_FIELDS)
    }
    documents = [{"_id": user_id, **strange[user_id]} for user_id in sorted(strange)]
    await insert_unchecked(database, "users", documents)
    refused, charged = await asyncio.gather(
        asyncio.gather(
            *(
                call(books, name, user_id=user_id)
                for user_id in strange
                for name, method in METHODS.items()
                if name not in {"create_user", "delete_user", *PAGES} and "user_id" in method.good
            ),
            return_exceptions=True,
        ),
        asyncio.gather(
            *(books.charge(USER, "generate-post") for _ in range(20)),
            *(books.charge(OTHER_USER, "generate-post") for _ in range(20)),
        ),
    )
    assert len(charged) == 40
    told = set()
    for error in refused:
        assert isinstance(error, AccountDataError), repr(error)
        told.add((error.user_id, error.field))
    assert told == {
        (f"strange-{number}", next(iter(fields))) for number, fields in enumerate(STRANGE_FIELDS)
    }
    query = {"_id": {"$in": list(strange)}}
    assert await database["users"].find(query).sort("_id").to_list(None) == documents


async def test_rows_of_a_credit_sdk_are_shown_with_the_librarys(
    books: CreditLedger, database: Database
) -> None:
    """They may share the collections and have no ``seq``, and still break no page or cursor."""
    # Two rows have the same millisecond.
    moments = [FUTURE + timedelta(days=days) for days in (0, 1, 1, 2)]
    await insert_unchecked(
        database,
        "transactions",
        [
            {
                "_id": ObjectId(),
                "userId": USER,
                "action": "post",
                "amount": -5,
                "balanceBefore": 10,
                "balanceAfter": 5,
                "metadata": {"a": 1},
                "createdAt": moment,
            }
            for moment in moments
        ],
    )
    await insert_unchecked(
        database,
        "audit_logs",
        [
            {
                "_id": ObjectId(),
                "userId": USER,
                "action": "post",
                "status": "success",
                "metadata": {"a": 1},
                "createdAt": moment,
            }
            for moment in moments
        ],
    )
    for name in PAGES:
        whole = list(await call(books, name))
        assert [row.created_at for row in whole[:4]] == moments[::-1]
        assert len(whole) == 4 + 4
        one_by_one, cursor = [], None
        while page := await call(books, name, limit=1, cursor=cursor):
            one_by_one += list(page)
            cursor = page.next_cursor
            if cursor is None:
                break
        assert one_by_one == whole


async def insert_unchecked(database: Database, collection: str, documents: list[Row]) -> None:
    """Write a document that the validators would refuse."""
    await database.command(
        {"insert": collection, "documents": documents, "bypassDocumentValidation": True}
    )
