"""An account's rare parts, and the legs of a transaction, as they are stored.

The user's document has them in one subdocument. Whoever has none of them has no such field.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from bson import Int64, ObjectId

from credit_mongo.core.extras import BASE_PRIORITY, ActiveHold, Extras, Leg, Lot, Pin, UnreadLots
from credit_mongo.core.holds import OVERAGES
from credit_mongo.storage.codecs import Raw
from credit_mongo.storage.fields import described, exact_whole
from credit_mongo.storage.numbers import in_utc, to_int64, to_moment, to_object_id

__all__ = [
    "ExtrasChanges",
    "ExtrasError",
    "changed_extras",
    "extras_from",
    "first_lots",
    "first_lots_from",
    "has_many_lots",
    "legs_from",
    "stored_extras",
    "stored_legs",
]


_MANY_LOTS: Final = 16
_FIRST_LOTS: Final = 4
_PARTS: Final = 3  # of what first_lots reads


class ExtrasError(Exception):
    """What is stored is not what the ledger writes. The message says where and what."""


class ExtrasChanges(NamedTuple):
    """How to change a user's extras: so many lots go from the front, then the fields are set."""

    used_up: int
    fields: Raw


# To the database


def stored_extras(extras: Extras) -> Raw:
    """The subdocument of a user."""
    return {
        "lots": [_stored_lot(lot) for lot in extras.all_lots],
        "holds": [_stored_hold(hold) for hold in extras.holds],
        "overdraft": to_int64(extras.overdraft),
    }


def changed_extras(name: str, before: Extras | None, after: Extras) -> ExtrasChanges:
    """How to change what is stored, by path if that will do.

    A charge uses up the first lots and changes the amount of the next. All others stay as they
    are, whether they were read or not.
    """
    used_up = -1 if before is None else len(before.lots) - len(after.lots)
    if before is None or not 0 <= used_up <= _FIRST_LOTS or before[1:] != after[1:]:
        return ExtrasChanges(0, {name: stored_extras(after)})
    changes: Raw = {}
    for number, (old, new) in enumerate(zip(before.lots[used_up:], after.lots, strict=True)):
        if old is new:
            continue
        if old._replace(amount=new.amount) != new:
            return ExtrasChanges(0, {name: stored_extras(after)})
        changes[f"{name}.lots.{number}.amount"] = to_int64(new.amount)
    return ExtrasChanges(used_up, changes)


def stored_legs(legs: Sequence[Leg]) -> list[Raw]:
    """The legs of a transaction. The base's has a ``lot`` of null and no more."""
    return [
        {"lot": None, "amount": to_int64(amount)}
        if lot is None
        else {**_stored_lot(lot, "lot"), "amount": to_int64(amount)}
        for lot, amount in legs
    ]


def _stored_lot(lot: Lot, id_field: str = "id") -> Raw:
    stored: Raw = {
        id_field: to_object_id(lot.lot_id),
        "amount": to_int64(lot.amount),
        "expiresAt": None if lot.expires_at is None else to_moment(lot.expires_at),
        "priority": lot.priority,
    }
    if lot.source is not None:
        stored["source"] = lot.source
    return stored


def _stored_hold(hold: ActiveHold) -> Raw:
    return {
        "id": to_object_id(hold.hold_id),
        "action": hold.action,
        "pins": [
            {
                "lot": None if pin.lot_id is None else to_object_id(pin.lot_id),
                "amount": to_int64(pin.amount),
            }
            for pin in hold.pins
        ],
        "captured": to_int64(hold.captured),
        "uncollected": to_int64(hold.uncollected),
        "used": to_int64(hold.used),
        "expiresAt": to_moment(hold.expires_at),
        "settlesAtEnd": hold.settles_at_end,
        "overage": hold.overage,
    }


# From the database


def first_lots(name: str) -> Raw:
    """The value of the field in a projection: if a user has many lots, only the first of them.

    Then it is an array: these lots, the first end of any lot, and the overdraft. Users with holds,
    and those with whatever the ledger does not write, come as they are stored.
    """
    lots = f"${name}.lots"
    is_array = {"$isArray": lots}
    has_many = {"$gt": [{"$size": {"$cond": [is_array, lots, []]}}, _MANY_LOTS]}
    in_part = [
        {"$slice": [lots, _FIRST_LOTS]},
        {"$min": f"{lots}.expiresAt"},
        f"${name}.overdraft",
    ]
    without_holds = {"$eq": [f"${name}.holds", []]}
    return {"$cond": [{"$and": [has_many, without_holds]}, in_part, f"${name}"]}


def has_many_lots(extras: Extras | None) -> bool:
    """Whether there are so many lots that ``first_lots`` does not read all."""
    return extras is not None and (extras.unread is not None or len(extras.lots) > _MANY_LOTS)


def first_lots_from(stored: object) -> Extras:
    """What ``first_lots`` read. Raises ExtrasError, which may not say what is wrong."""
    if type(stored) is not list:
        return extras_from(stored)
    if len(stored) == _PARTS and (lots := _lots(stored[0])) is not None:
        _, next_end, overdraft = stored
        is_end = next_end is None or type(next_end) is datetime
        if is_end and type(overdraft) is Int64 and overdraft >= 0:
            return Extras(lots, (), int(overdraft), UnreadLots(in_utc(next_end)))
    raise ExtrasError("is not what the ledger writes")


def extras_from(stored: object) -> Extras:
    """What ``stored_extras`` wrote. Raises ExtrasError."""
    try:
        fields = _Fields(stored, "")
        return Extras(
            _lots(fields.value("lots")) or tuple(_lot(each) for each in fields.items("lots")),
            tuple(_hold(each) for each in fields.items("holds")),
            fields.amount("overdraft"),
        )
    except ExtrasError as error:
        raise ExtrasError(f"is not what the ledger writes: {error}") from None


def legs_from(stored: object) -> tuple[Leg, ...]:
    """What ``stored_legs`` wrote; nothing if the row has no legs. Raises ExtrasError."""
    if stored is None:
        return ()
    return tuple(_leg(each) for each in _Fields({"legs": stored}, "").items("legs"))


def _lots(stored: Any) -> tuple[Lot, ...] | None:
    """The lots if each is just as the ledger writes it, in a fifth of the time that `_lot` takes.

    None otherwise: `_lot` then says what is wrong.
    """
    if type(stored) is not list:
        return None
    lots = []
    for each in stored:
        try:
            lot_id, amount, priority = each["id"], each["amount"], each["priority"]
            end, source = each["expiresAt"], each.get("source")
        except (TypeError, KeyError, AttributeError):
            return None
        is_as_written = (
            type(lot_id) is ObjectId
            and type(amount) is Int64
            and amount > 0
            and type(priority) is int
            and (end is None or type(end) is datetime)
            and (source is None or type(source) is str)
        )
        if not is_as_written:
            return None
        lots.append(Lot(str(lot_id), int(amount), in_utc(end), priority, source))
    return tuple(lots)


def _leg(fields: _Fields) -> Leg:
    amount = fields.amount("amount", signed=True)
    return Leg(None if fields.is_none("lot") else _lot(fields, "lot"), amount)


def _lot(fields: _Fields, id_field: str = "id") -> Lot:
    is_leg = id_field == "lot"
    return Lot(
        fields.stored_id(id_field),
        0 if is_leg else fields.amount("amount"),
        fields.optional_moment("expiresAt"),
        fields.amount("priority") if not fields.is_none("priority") else BASE_PRIORITY,
        fields.optional_text("source"),
    )


def _hold(fields: _Fields) -> ActiveHold:
    pins = [
        Pin(None if each.is_none("lot") else each.stored_id("lot"), each.amount("amount"))
        for each in fields.items("pins")
    ]
    return ActiveHold(
        hold_id=fields.stored_id("id"),
        action=fields.text("action"),
        pins=tuple(pins),
        captured=fields.amount("captured"),
        uncollected=fields.amount("uncollected"),
        used=fields.amount("used"),
        expires_at=fields.moment("expiresAt"),
        settles_at_end=fields.flag("settlesAtEnd"),
        overage=fields.one_of("overage", OVERAGES),
    )


class _Fields:
    """The fields of a stored subdocument, each exactly as the ledger writes it."""

    def __init__(self, stored: object, path: str) -> None:
        if not isinstance(stored, Mapping):
            raise ExtrasError(f"{path or 'it'} {described(stored)}")
        self._stored: Mapping[str, Any] = stored
        self._path = path

    def items(self, name: str) -> list[_Fields]:
        value = self._stored.get(name, [])
        if not isinstance(value, list):
            raise self._wrong(name)
        return [_Fields(each, f"{self._path}{name}.{n}.") for n, each in enumerate(value)]

    def value(self, name: str) -> Any:
        return self._stored.get(name)

    def is_none(self, name: str) -> bool:
        return self._stored.get(name) is None

    def amount(self, name: str, *, signed: bool = False) -> int:
        number = exact_whole(self._stored.get(name))
        if number is None or (number < 0 and not signed):
            raise self._wrong(name)
        return number

    def text(self, name: str) -> str:
        value = self._stored.get(name)
        if not isinstance(value, str):
            raise self._wrong(name)
        return value

    def one_of(self, name: str, allowed: Collection[str]) -> str:
        value = self.text(name)
        if value not in allowed:
            raise ExtrasError(f"{self._path}{name} is none of {', '.join(allowed)}")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self.is_none(name) else self.text(name)

    def stored_id(self, name: str) -> str:
        if self.is_none(name):
            raise self._wrong(name)
        return str(self._stored[name])

    def moment(self, name: str) -> datetime:
        value = in_utc(self._stored.get(name))
        if not isinstance(value, datetime):
            raise self._wrong(name)
        return value

    def optional_moment(self, name: str) -> datetime | None:
        return None if self.is_none(name) else self.moment(name)

    def flag(self, name: str) -> bool:
        value = self._stored.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name)
        return value

    def _wrong(self, name: str) -> ExtrasError:
        return ExtrasError(f"{self._path}{name} {described(self._stored.get(name))}")
