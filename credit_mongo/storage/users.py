"""Users as they are stored: a mapping's names and ids, worked out once for a ledger or a job."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final
from uuid import UUID

from bson import Binary, ObjectId
from bson.binary import UuidRepresentation
from bson.datetime_ms import DatetimeMS
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.extras import Extras
from credit_mongo.core.values import Account, Unopened, check_identifier
from credit_mongo.errors import AccountDataError, ConfigurationError, InvalidRequestError
from credit_mongo.storage.codecs import Raw
from credit_mongo.storage.extras import (
    ExtrasError,
    changed_extras,
    extras_from,
    first_lots,
    first_lots_from,
    stored_extras,
)
from credit_mongo.storage.fields import described
from credit_mongo.storage.numbers import in_utc, to_int64, to_moment

__all__ = ["StoredUsers", "text_after"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST_SURROGATE: Final = 0xD800
_LAST_SURROGATE: Final = 0xDFFF


class StoredUsers:
    """Reads and writes users' documents by the names of a mapping, and by the type of their ids."""

    def __init__(self, mapping: UserMapping | None, representation: int) -> None:
        self.are_the_applications: bool = mapping is not None
        """Whether the documents have other purposes, and stay when an account is erased."""
        names = mapping or UserMapping()
        self.names: UserMapping = names
        self.fields: Final = dict.fromkeys(names.model_dump(exclude={"id_type"}).values(), 1)
        """For a projection."""
        self.fields_in_part: Final = {**self.fields, names.extras: first_lots(names.extras)}
        """The same, but of users with many lots only the first ones."""
        self.book_fields: Final = dict.fromkeys(
            (names.credits, names.seq, names.updated_at, names.extras), 1
        )
        """Only what the history has to agree with, and when it was changed last."""
        self._credits, self._seq = names.credits, names.seq
        self._tier, self._expires_at = names.membership_tier, names.membership_expires_at
        self._created_at, self._updated_at = names.created_at, names.updated_at
        self._extras = names.extras
        self._ids = _ids(names, representation)

    @classmethod
    def of(cls, mapping: UserMapping | None, database: AsyncDatabase[Any]) -> StoredUsers:
        """With UUIDs as the client of the database represents them."""
        return cls(mapping, database.codec_options.uuid_representation)

    # Ids

    def check_id(self, field: str, value: object) -> str:
        """A user id of the API. Raises InvalidRequestError if no document can have it."""
        user_id = check_identifier(field, value)
        if self._ids is not None and not self._ids.pattern.fullmatch(user_id):
            raise InvalidRequestError(field, f"must be {self._ids.form}")
        return user_id

    def id_of(self, user_id: str) -> Any:
        """How the id is stored. It was checked."""
        return user_id if self._ids is None else self._ids.stored(user_id)

    def query_of(self, user_id: str) -> Raw:
        """The document of a user; of none, if the string is no such id."""
        if self._ids is not None and not self._ids.pattern.fullmatch(user_id):
            return {"_id": {"$in": []}}
        return {"_id": self.id_of(user_id)}

    def stored_ids(self, user_ids: Iterable[str]) -> list[Any]:
        """As they are stored, without those that are no such ids."""
        ids = self._ids
        if ids is None:
            return list(user_ids)
        return [ids.stored(each) for each in user_ids if ids.pattern.fullmatch(each)]

    def user_id_of(self, document: Mapping[str, Any]) -> str:
        """What the API calls the user of a document."""
        stored = document["_id"]
        user_id: str = stored if self._ids is None else self._ids.text(stored)
        return user_id

    def ids_above(self, place: str | None) -> Raw:
        """The condition on the ids of this type (None: all), or of them those after a string."""
        if self._ids is None:
            return {"$gte": ""} if place is None else {"$gt": place}
        return self._ids.above(place)

    def ids_beginning(self, text: str) -> Raw:
        """The condition on the ids of this type that begin with a text, which need not be one."""
        end = text_after(text)
        if self._ids is not None:
            return self._ids.between(text, end)
        return {"$gte": text} if end is None else {"$gte": text, "$lt": end}

    # From the database

    def account_from(self, document: Mapping[str, Any], *, in_part: bool = False) -> Account:
        """A user's account. Raises AccountDataError if a field is not what the ledger writes.

        ``in_part``: it was read by ``fields_in_part``.
        """
        # First, as these can also be in the way of opening an account.
        tier, expires_at = self._membership(document)
        created_at = in_utc(document.get(self._created_at))
        updated_at = in_utc(document.get(self._updated_at))
        if not isinstance(created_at, datetime):
            created_at = _EPOCH
        return Account(
            user_id=self.user_id_of(document),
            credits=self._whole_number(document, self._credits),
            seq=0 if document.get(self._seq) is None else self._whole_number(document, self._seq),
            membership_tier=tier,
            membership_expires_at=expires_at,
            created_at=created_at,
            updated_at=updated_at if isinstance(updated_at, datetime) else created_at,
            extras=None
            if document.get(self._extras) is None
            else self._extras_of(document, in_part=in_part),
        )

    def _extras_of(self, document: Mapping[str, Any], *, in_part: bool) -> Extras:
        stored = document[self._extras]
        try:
            return first_lots_from(stored) if in_part else extras_from(stored)
        except ExtrasError as error:
            raise self._wrong(document, self._extras, str(error)) from None

    def unopened_from(self, document: Mapping[str, Any]) -> Unopened | None:
        """What create_user finds in a document without an account; None if it has one."""
        if not self.is_unopened(document):
            return None
        created_at = in_utc(document.get(self._created_at))
        if created_at is not None and not isinstance(created_at, datetime):
            # The application's own way to keep it: it stays as it is.
            created_at = _EPOCH
        return Unopened(*self._membership(document), created_at)

    def is_unopened(self, document: Mapping[str, Any]) -> bool:
        """Whether it has neither credits nor a count of transactions. Null is nothing."""
        return document.get(self._credits) is None and document.get(self._seq) is None

    def without_balance(self, document: Raw, balances: Mapping[str, Any]) -> Raw:
        """The document without its balance, if it has just the one in ``balances`` and no count."""
        stored = document.get(self._credits)
        if stored is None or document.get(self._seq) is not None:
            return document
        old = balances.get(self.user_id_of(document))
        # True equals 1, and 1.0 too.
        if type(old) is not type(stored) or old != stored:
            return document
        return {**document, self._credits: None}

    def by_own_names(self, document: Raw) -> Raw:
        """Id and ``book_fields`` by the names that the ledger's own documents have."""
        found = {"_id": self.user_id_of(document)}
        own = {
            "credits": self._credits,
            "seq": self._seq,
            "updatedAt": self._updated_at,
            "creditExtras": self._extras,
        }
        for name, field in own.items():
            if document.get(field) is not None:
                found[name] = document[field]
        return found

    def _membership(self, document: Mapping[str, Any]) -> tuple[str | None, datetime | None]:
        tier, expires_at = document.get(self._tier), in_utc(document.get(self._expires_at))
        if tier is not None and not isinstance(tier, str):
            raise self._wrong(document, self._tier, "is not a str: store the tier's name")
        if isinstance(expires_at, DatetimeMS):
            # "Never", as some write it. Which it means, and until when, is not ours to guess.
            reason = f"{described(expires_at)}: store null for a membership without an end"
            raise self._wrong(document, self._expires_at, reason)
        if expires_at is not None and not isinstance(expires_at, datetime):
            raise self._wrong(document, self._expires_at, "is not a datetime: store a date")
        return tier, expires_at

    def _whole_number(self, document: Mapping[str, Any], field: str) -> int:
        value = document.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            if value >= 0 or (field == self._credits and document.get(self._extras) is not None):
                return int(value)
            raise self._wrong(document, field, "is below zero: set it to what it should be")
        if value is not None:
            reason = "is not a whole number: store it as an int64, in smallest units"
        elif self.is_unopened(document):
            reason = "is missing: create_user opens an account on the document"
        else:
            reason = "is missing: set it to the balanceAfter of the user's last transaction"
        raise self._wrong(document, field, reason)

    def _wrong(self, document: Mapping[str, Any], field: str, reason: str) -> AccountDataError:
        if self.are_the_applications:
            reason = f"{reason} (the field is named in CreditConfig(users=…))"
        return AccountDataError(self.user_id_of(document), field, reason)

    # To the database

    def row(self, account: Account) -> Raw:
        """A new user."""
        return {
            "_id": self.id_of(account.user_id),
            self._credits: to_int64(account.credits),
            self._tier: account.membership_tier,
            self._expires_at: account.membership_expires_at,
            self._seq: to_int64(account.seq),
            self._created_at: account.created_at,
            self._updated_at: to_moment(account.updated_at),
            **({} if account.extras is None else {self._extras: stored_extras(account.extras)}),
        }

    def updates(self, before: Account | Unopened, after: Account) -> list[Raw]:
        """The update statements: the fields that changed, and none of the application's own."""
        changed: Raw = {
            self._credits: to_int64(after.credits),
            self._seq: to_int64(after.seq),
            self._updated_at: to_moment(after.updated_at),
        }
        if after.membership_tier != before.membership_tier:
            changed[self._tier] = after.membership_tier
        if after.membership_expires_at != before.membership_expires_at:
            changed[self._expires_at] = after.membership_expires_at
        if before.created_at is None:
            changed[self._created_at] = after.created_at
        changes: Raw = {"$set": changed}
        query = {"_id": self.id_of(after.user_id)}
        used_up = 0
        # Whatever a document has without an account, a new account begins without extras.
        extras = before.extras if isinstance(before, Account) else None
        if after.extras != extras or not isinstance(before, Account):
            if after.extras is None:
                changes["$unset"] = {self._extras: ""}
            else:
                used_up, fields = changed_extras(self._extras, extras, after.extras)
                changed |= fields
        # One statement can't both remove elements of an array and set others.
        removals = [{"q": query, "u": {"$pop": {f"{self._extras}.lots": -1}}}] * used_up
        return [*removals, {"q": query, "u": changes}]

    def same_update(self, before: Unopened, after: Account) -> object:
        """A value that is equal for accounts that are opened by the same changes."""
        if after.extras is not None:
            return after.user_id
        return (
            after[1:5],
            after.updated_at,
            before.membership_tier,
            before.membership_expires_at,
            after.created_at if before.created_at is None else None,
        )

    def update_of_many(self, opened: Sequence[tuple[Unopened, Account]]) -> Raw:
        """One update statement for accounts that are opened in the same way."""
        [statement] = self.updates(*opened[0])
        if len(opened) > 1:
            ids = [self.id_of(after.user_id) for _, after in opened]
            return {**statement, "q": {"_id": {"$in": ids}}, "multi": True}
        return statement

    @property
    def opened(self) -> Raw:
        """The condition that a document has an account."""
        return {"$or": [{self._credits: {"$ne": None}}, {self._seq: {"$ne": None}}]}

    @property
    def removal(self) -> Raw:
        """The update that takes the account from a document of the application's.

        The two dates stay: they may well be the application's, too.
        """
        gone = (self._credits, self._seq, self._tier, self._expires_at, self._extras)
        return {"$unset": dict.fromkeys(gone, "")}


@dataclass(frozen=True, slots=True)
class _Ids:
    """Ids that are numbers of a fixed width; their texts are in the same order."""

    pattern: re.Pattern[str]
    form: str
    bits: int
    numbered: Callable[[int], str]
    """The text of a number."""
    stored: Callable[[str], Any]
    text: Callable[[Any], str]

    def above(self, place: str | None) -> Raw:
        """The condition on the ids after a string, which need not be one."""
        first = 0 if place is None else self._first(lambda text: text > place)
        return self._range(first, 1 << self.bits)

    def between(self, start: str, end: str | None) -> Raw:
        """The condition on the ids from one string up to, but not including, another."""
        first = self._first(lambda text: text >= start)
        last = 1 << self.bits if end is None else self._first(lambda text: text >= end)
        return self._range(first, last)

    def _first(self, is_behind: Callable[[str], bool]) -> int:
        """The first number whose text is behind a place in the order."""
        low, high = 0, 1 << self.bits
        while low < high:
            middle = (low + high) // 2
            if is_behind(self.numbered(middle)):
                high = middle
            else:
                low = middle + 1
        return low

    def _range(self, low: int, end: int) -> Raw:
        if low >= end:
            return {"$in": []}
        # From both sides: a server takes binary data of other lengths and kinds for smaller, or
        # for larger.
        first, last = self.numbered(low), self.numbered(end - 1)
        return {"$gte": self.stored(first), "$lte": self.stored(last)}


_OBJECT_IDS: Final = _Ids(
    pattern=re.compile("[0-9a-f]{24}"),
    form="an ObjectId: 24 hexadecimal digits in lower case, as str() gives them",
    bits=96,
    numbered=lambda number: f"{number:024x}",
    stored=ObjectId,
    text=str,
)


def _ids(mapping: UserMapping, representation: int) -> _Ids | None:
    if mapping.id_type == "string":
        return None
    if mapping.id_type == "objectId":
        return _OBJECT_IDS
    # As Beanie stores them, where the client leaves it open.
    if representation == UuidRepresentation.UNSPECIFIED:
        representation = UuidRepresentation.STANDARD
    if representation not in (UuidRepresentation.STANDARD, UuidRepresentation.PYTHON_LEGACY):
        # In these the bytes have another order than the text.
        raise ConfigurationError(
            "users.id_type",
            "UUIDs can't be ids with the client's uuidRepresentation javaLegacy or csharpLegacy: "
            "store them as the standard has it (uuidRepresentation=standard)",
        )
    return _Ids(
        pattern=re.compile("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"),
        form="a UUID: its canonical text in lower case, as str() gives it",
        bits=128,
        numbered=lambda number: str(UUID(int=number)),
        stored=lambda text: Binary.from_uuid(UUID(text), representation),
        text=lambda stored: str(stored if isinstance(stored, UUID) else UUID(bytes=bytes(stored))),
    )


def text_after(beginning: str) -> str | None:
    """The first text after all that begin with this one. None if there is nothing after them."""
    for length in range(len(beginning), 0, -1):
        code = ord(beginning[length - 1]) + 1
        if code == _FIRST_SURROGATE:
            # UTF-8 has none of these, and orders texts as Python does.
            code = _LAST_SURROGATE + 1
        if code <= sys.maxunicode:
            return beginning[: length - 1] + chr(code)
    return None
