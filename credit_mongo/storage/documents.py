"""What is stored: the Beanie documents of the collections, their indexes and validators.

They are for an application's own queries and for ``init_beanie``. The ledger itself reads and
writes plain rows (``rows.py``): Beanie binds a class to one database in a process, so two ledgers
could not share the classes.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from datetime import datetime
from typing import Any, ClassVar, Final, cast

import pymongo
from beanie import Document, PydanticObjectId
from pydantic import BaseModel, ConfigDict, Field, create_model
from pymongo import IndexModel

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.storage.holds import ACTIVE, HOLD_STATUSES
from credit_mongo.storage.rows import Raw

__all__ = [
    "CREDIT_DOCUMENTS",
    "FAILED_BY_TIME",
    "FAILED_OF_USER",
    "CreditAccount",
    "CreditAuditLog",
    "CreditExtras",
    "CreditHold",
    "CreditIdempotencyRecord",
    "CreditLeg",
    "CreditTransaction",
    "CreditUser",
    "credit_documents",
    "earlier_validators",
    "users_validator",
]

_WHOLE_NUMBER: Final = ["int", "long"]
_AMOUNT: Final[Raw] = {"bsonType": _WHOLE_NUMBER, "minimum": 0}

# Almost all attempts succeed, and a successful one has no entry in these two indexes.
_FAILED: Final[Raw] = {"status": "failed"}
FAILED_OF_USER: Final = IndexModel(
    [
        ("status", pymongo.ASCENDING),
        ("userId", pymongo.ASCENDING),
        ("createdAt", pymongo.DESCENDING),
        ("_id", pymongo.DESCENDING),
    ],
    partialFilterExpression=_FAILED,
)
"""For a user's pages of failed attempts."""
FAILED_BY_TIME: Final = IndexModel(
    [("status", pymongo.ASCENDING), ("createdAt", pymongo.ASCENDING)],
    partialFilterExpression=_FAILED,
)
"""For the cleanup of old ones."""


class _Common(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(populate_by_name=True)

    # A $jsonSchema that the server checks. The users have one, because applications write to them
    # as well, and it costs nothing that can be measured. The holds have one because what they keep
    # depends on their end. Those of the other three took 4 to 5 % of the throughput, to check rows
    # that only the ledger writes.
    validator: ClassVar[Raw | None] = None


class _CreditDocument(_Common, Document):
    pass


def _users_schema(credits_field: str, extras_field: str, properties: Raw, **more: Any) -> Raw:
    """Let nobody be below zero who has no lots, holds or overdraft and never had a debt."""
    has_extras = {"required": [extras_field], "properties": {extras_field: {"bsonType": "object"}}}
    return {
        "bsonType": "object",
        **more,
        "properties": properties,
        "anyOf": [{"properties": {credits_field: {"minimum": 0}}}, has_extras],
    }


class CreditLot(_Common):
    """A user's lot: credits with an end, a priority or a source of their own."""

    id: PydanticObjectId | str
    amount: int
    expires_at: datetime | None = Field(default=None, alias="expiresAt")
    priority: int
    source: str | None = None


class CreditPin(_Common):
    """Credits that a hold keeps, in a lot or (``lot`` None) in the base."""

    lot: PydanticObjectId | str | None
    amount: int


class CreditActiveHold(_Common):
    """What the user's document knows of an active hold."""

    id: PydanticObjectId | str
    action: str
    pins: list[CreditPin]
    captured: int
    uncollected: int
    used: int
    expires_at: datetime = Field(alias="expiresAt")
    settles_at_end: bool = Field(alias="settlesAtEnd")
    overage: str


class CreditExtras(_Common):
    """A user's lots in the order of their use, active holds, and overdraft."""

    lots: list[CreditLot] = Field(default_factory=list)
    holds: list[CreditActiveHold] = Field(default_factory=list)
    overdraft: int = 0


class CreditLeg(_Common):
    """What a transaction changed in one lot, or (``lot`` None) in the base."""

    lot: PydanticObjectId | str | None
    amount: int
    expires_at: datetime | None = Field(default=None, alias="expiresAt")
    priority: int | None = None
    source: str | None = None


class CreditUser(_CreditDocument):
    """A user's account. Read it freely; its credits are written by the ledger alone."""

    id: str = Field(alias="_id")  # type: ignore[assignment]
    credits: int
    membership_tier: str | None = Field(default=None, alias="membershipTier")
    membership_expires_at: datetime | None = Field(default=None, alias="membershipExpiresAt")
    seq: int = 0
    created_at: datetime = Field(alias="createdAt")
    updated_at: datetime = Field(alias="updatedAt")
    credit_extras: CreditExtras | None = Field(default=None, alias="creditExtras")

    validator: ClassVar[Raw | None] = _users_schema(
        "credits",
        "creditExtras",
        {"credits": {"bsonType": _WHOLE_NUMBER}, "seq": _AMOUNT},
        required=["_id", "credits"],
    )

    class Settings:
        """Beanie's settings."""

        name = "users"
        indexes: ClassVar[list[IndexModel]] = [IndexModel("membershipTier")]


def _the_ledgers(alias: str | None = None) -> Any:
    # Excluded: Beanie leaves the field out of all that it writes, and so a balance that was read
    # some time ago never overwrites the one there is.
    return Field(default=None, alias=alias, exclude=True)


class CreditAccount(BaseModel):
    """For the application's own document: ``class User(Document, CreditAccount)``.

    The fields have the names of ``CreditConfig(users=UserMapping())``. If your mapping gives one
    another name, declare it again, with that name as its alias and with ``exclude=True``.

    The fields are for reading. ``insert``, ``save`` and ``save_changes`` of the document leave them
    out, and so does ``model_dump``. Don't use ``replace``: it removes them from the database. They
    are None while the user has no account.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(populate_by_name=True)

    credits: int | None = _the_ledgers()
    seq: int | None = _the_ledgers()
    membership_tier: str | None = _the_ledgers("membershipTier")
    membership_expires_at: datetime | None = _the_ledgers("membershipExpiresAt")
    credit_extras: CreditExtras | None = _the_ledgers("creditExtras")


class CreditTransaction(_CreditDocument):
    """One change of one balance; never updated, never deleted but by the archive."""

    id: PydanticObjectId = Field(alias="_id")
    user_id: str = Field(alias="userId")
    seq: int
    operation: str
    action: str
    amount: int
    balance_before: int = Field(alias="balanceBefore")
    balance_after: int = Field(alias="balanceAfter")
    metadata: Raw | None = Field(default=None, repr=False)
    idempotency_key: str | None = Field(default=None, alias="idempotencyKey", repr=False)
    key_expires_at: datetime | None = Field(default=None, alias="keyExpiresAt")
    refund_of: PydanticObjectId | str | None = Field(default=None, alias="refundOf")
    created_at: datetime = Field(alias="createdAt")
    legs: list[CreditLeg] = Field(default_factory=list)
    revoke_of: PydanticObjectId | str | None = Field(default=None, alias="revokeOf")
    hold_id: PydanticObjectId | str | None = Field(default=None, alias="holdId")
    uncollected: int = 0
    written_at: datetime | None = Field(default=None, alias="writtenAt")

    class Settings:
        """Beanie's settings."""

        name = "transactions"
        indexes: ClassVar[list[IndexModel]] = [
            IndexModel(
                [
                    ("userId", pymongo.ASCENDING),
                    ("createdAt", pymongo.DESCENDING),
                    ("seq", pymongo.DESCENDING),
                ]
            ),
            # For all rows of an action, and for a user's pages of one.
            IndexModel(
                [
                    ("action", pymongo.ASCENDING),
                    ("userId", pymongo.ASCENDING),
                    ("createdAt", pymongo.DESCENDING),
                    ("seq", pymongo.DESCENDING),
                ]
            ),
            # Only refunds of a charge have an entry: the cap of a refund is a look-up, not a scan.
            IndexModel("refundOf", sparse=True),
            IndexModel("revokeOf", sparse=True),
            # For usage reports. New keys go to the end of the index, so they cost a charge little.
            IndexModel("createdAt"),
        ]


class CreditAuditLog(_CreditDocument):
    """One attempt, successful or refused. It has the ``_id`` of its transaction."""

    id: PydanticObjectId = Field(alias="_id")
    user_id: str = Field(alias="userId")
    operation: str
    action: str
    status: str
    details: Raw
    metadata: Raw | None = Field(default=None, repr=False)
    error_message: str | None = Field(default=None, alias="errorMessage")
    created_at: datetime = Field(alias="createdAt")

    class Settings:
        """Beanie's settings."""

        name = "audit_logs"
        indexes: ClassVar[list[IndexModel]] = [
            # With _id, pages are cut exactly and read in index order, however long the log.
            IndexModel(
                [
                    ("userId", pymongo.ASCENDING),
                    ("createdAt", pymongo.DESCENDING),
                    ("_id", pymongo.DESCENDING),
                ]
            ),
            IndexModel("status"),
            FAILED_OF_USER,
            FAILED_BY_TIME,
        ]


class CreditIdempotencyRecord(_CreditDocument):
    """What a key did, until it expires."""

    id: str = Field(alias="_id", repr=False)  # type: ignore[assignment]
    operation: str
    user_id: str = Field(alias="userId")
    fingerprint: str
    result: Raw = Field(repr=False)
    created_at: datetime = Field(alias="createdAt")
    expires_at: datetime = Field(alias="expiresAt")

    class Settings:
        """Beanie's settings."""

        name = "idempotency_records"
        indexes: ClassVar[list[IndexModel]] = [
            IndexModel("expiresAt", expireAfterSeconds=0),
            # For erasures: a key may outlive its transaction in the database, which goes to files.
            IndexModel([("userId", pymongo.ASCENDING), ("createdAt", pymongo.ASCENDING)]),
        ]


class CreditHold(_CreditDocument):
    """Credits kept for work whose cost is known afterwards. It stays when it has ended."""

    id: PydanticObjectId = Field(alias="_id")
    user_id: str = Field(alias="userId")
    action: str
    amount: int
    captured: int
    uncollected: int
    used: int
    status: str
    expires_at: datetime = Field(alias="expiresAt")
    on_timeout: str = Field(alias="onTimeout")
    overage: str
    price: int | str | None = None
    tier: str | None = None
    created_at: datetime = Field(alias="createdAt")
    updated_at: datetime = Field(alias="updatedAt")
    changed_by: PydanticObjectId = Field(alias="changedBy")
    metadata: Raw | None = Field(default=None, repr=False)

    validator: ClassVar[Raw | None] = {
        "bsonType": "object",
        "required": ["userId", "amount", "captured", "status", "expiresAt", "createdAt"],
        "properties": {
            "userId": {"bsonType": "string"},
            "amount": _AMOUNT,
            "captured": _AMOUNT,
            "uncollected": _AMOUNT,
            "used": _AMOUNT,
            "status": {"enum": list(HOLD_STATUSES)},
            "expiresAt": {"bsonType": "date"},
            "createdAt": {"bsonType": "date"},
        },
    }

    class Settings:
        """Beanie's settings."""

        name = "holds"
        indexes: ClassVar[list[IndexModel]] = [
            # With _id, for the same reason as in the audit log.
            IndexModel(
                [
                    ("userId", pymongo.ASCENDING),
                    ("createdAt", pymongo.DESCENDING),
                    ("_id", pymongo.DESCENDING),
                ]
            ),
            # Active holds are few, however many have ended.
            IndexModel(
                [("userId", pymongo.ASCENDING), ("expiresAt", pymongo.ASCENDING)],
                partialFilterExpression=ACTIVE,
            ),
        ]


CREDIT_DOCUMENTS: Final[tuple[type[_CreditDocument], ...]] = (
    CreditUser,
    CreditTransaction,
    CreditAuditLog,
    CreditIdempotencyRecord,
    CreditHold,
)
"""For the application's one ``init_beanie(document_models=[*CREDIT_DOCUMENTS, …])``."""


def users_validator(users: UserMapping) -> Raw:
    """The validator of documents that are the application's, with accounts or without."""
    number: Raw = {"bsonType": [*_WHOLE_NUMBER, "null"]}
    properties = {users.credits: number, users.seq: {**number, "minimum": 0}}
    return _users_schema(users.credits, users.extras, properties)


def earlier_validators(users: UserMapping | None) -> tuple[Raw, ...]:
    """The validators of the users' documents that earlier versions of the library set.

    They refuse every balance below zero, so that of a user with an overdraft as well.
    """
    if users is None:
        properties = {"credits": _AMOUNT, "seq": _AMOUNT}
        return ({"bsonType": "object", "required": ["_id", "credits"], "properties": properties},)
    amount: Raw = {"bsonType": [*_WHOLE_NUMBER, "null"], "minimum": 0}
    properties = {users.credits: amount, users.seq: amount}
    return ({"bsonType": "object", "properties": properties},)


def credit_documents(
    names: CollectionNames, users: UserMapping | None = None
) -> tuple[type[_CreditDocument], ...]:
    """The documents, bound to collections of other names.

    They are five, or with ``users`` four: the application has the one of its users itself.
    """
    wanted = (
        *(names.users, names.transactions, names.audit_logs, names.idempotency_records),
        names.holds,
    )
    return tuple(
        document if document.Settings.name == name else _bound_to(document, name)
        for document, name in zip(CREDIT_DOCUMENTS, wanted, strict=True)
        if document is not CreditUser or users is None
    )


def _bound_to(document: type[_CreditDocument], name: str) -> type[_CreditDocument]:
    """A class of its own: Beanie would bind that which it is derived from to the same database."""
    fields: dict[str, Any] = {
        field: (info.annotation, copy(info))
        for field, info in document.model_fields.items()
        if field in document.__annotations__
    }
    # As any callable: mypy would take the result for a class that it knows.
    create: Callable[..., Any] = create_model
    bound = create(document.__name__, __base__=(_Common, Document), __module__=__name__, **fields)
    bound.__doc__, bound.__qualname__ = document.__doc__, document.__qualname__
    bound.validator = document.validator
    settings: Any = document
    bound.Settings = type("Settings", (settings.Settings,), {"name": name})
    return cast("type[_CreditDocument]", bound)
