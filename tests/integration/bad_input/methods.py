"""Every public method, with good arguments and with bad ones for each of them."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any

from bson import Binary, DatetimeMS, Int64, ObjectId, Regex
from bson.raw_bson import RawBSONDocument

from credit_mongo import (
    KEEP,
    AuditConfig,
    CreditConfig,
    CreditLedger,
    InvalidRequestError,
)
from tests.integration.promises import Database, Row

UTC = timezone.utc
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
PAST = datetime(2020, 1, 1, tzinfo=UTC)
USER, OTHER_USER = "user-1", "user-2"
# Part of every wrong value, and must not come back in an error.
PRIVATE = "private-value"


# --- Wrong values, by kind of argument ------------------------------------------------------------


class ImpossibleZone(tzinfo):
    """A time zone two days away."""

    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(days=2)

    def tzname(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None


def nested(depth: int) -> dict[str, Any]:
    """Return dictionaries nested this deep."""
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def cyclic() -> dict[str, Any]:
    """Return a dictionary that contains itself."""
    value: dict[str, Any] = {}
    value["a"] = [value]
    return value


NAN, INFINITY = float("nan"), float("inf")
BROKEN_BSON = RawBSONDocument(b"\x0d\x00\x00\x00\x02a\x00\xff\x00\x00\x00z\x00")
WEST = timezone(timedelta(hours=-12))

NO_STRINGS: tuple[Any, ...] = (
    True,
    0,
    5,
    1.5,
    NAN,
    PRIVATE.encode(),
    {"$ne": PRIVATE},
    {"$gt": ""},
    {},
    [PRIVATE],
    [],
    (PRIVATE,),
    ObjectId(),
    uuid.uuid4(),
    re.compile(PRIVATE),
    Regex("."),
    FUTURE,
    object(),
)
BAD_STRINGS = (
    "",
    "x" * 256,
    f"{PRIVATE}\x00",
    f"{PRIVATE}\n",
    "\x1b[31m",
    "\x7f",
    "\x85",
    f"{PRIVATE}\ud800",
    "\udfff",
)
IDENTIFIER = (*NO_STRINGS, *BAD_STRINGS)
NO_NUMBERS = (
    True,
    False,
    1.0,
    NAN,
    INFINITY,
    Decimal(1),
    Fraction(1),
    1j,
    "1",
    PRIVATE,
    b"1",
    [1],
    {"$inc": 1},
    object(),
)
AMOUNT: tuple[Any, ...] = (*NO_NUMBERS, 0, -1, -(2**53), 2**53, 2**63 - 1, 2**63, 10**400, Int64(0))
OPENING = (*NO_NUMBERS, -1, 2**53, 2**63, 10**400)
MOMENT = (
    True,
    0,
    1.77e9,
    NAN,
    "2099-01-01T00:00:00Z",
    PRIVATE,
    b"2099",
    date(2099, 1, 1),
    timedelta(days=1),
    {"$currentDate": True},
    [FUTURE],
    object(),
    DatetimeMS(0),
    datetime(2099, 1, 1),  # noqa: DTZ001
    datetime.max.replace(tzinfo=WEST),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=12))),
    datetime(2099, 1, 1, tzinfo=ImpossibleZone()),
)
FLAG: tuple[Any, ...] = (None, 0, 1, 1.0, "true", "", b"", [], {}, {"$ne": False}, object())
METADATA: tuple[Any, ...] = (
    True,
    5,
    NAN,
    PRIVATE,
    PRIVATE.encode(),
    [("a", PRIVATE)],
    {PRIVATE},
    object(),
    {5: PRIVATE},
    {b"a": PRIVATE},
    {None: PRIVATE},
    {"a\x00": PRIVATE},
    {"a": [{"b\x00": PRIVATE}]},
    {"\ud800": PRIVATE},
    {"a": f"{PRIVATE}\udfff"},
    {"a": object()},
    {"a": {PRIVATE}},
    {"a": Decimal("1.5")},
    {"a": date(2026, 1, 1)},
    {"a": 2**63},
    {"a": datetime.max.replace(tzinfo=WEST)},
    {"a": DatetimeMS(2**62)},
    {"a": Binary(b"abc", 4)},
    BROKEN_BSON,
    {"a": BROKEN_BSON},
    cyclic(),
    nested(101),
    nested(200),
    nested(50_000),
    {"a": "x" * 16_384},
    {"a": "x" * 17_000_000},
)
VARIABLES = (
    True,
    5,
    PRIVATE,
    [("token", 1)],
    {PRIVATE},
    object(),
    {"token": None},
    {"token": True},
    {"token": PRIVATE},
    {"token": "5"},
    {"token": [5]},
    {"token": {"$gt": 0}},
    {"token": NAN},
    {"token": INFINITY},
    {"token": Decimal("NaN")},
    {"token": Decimal("sNaN")},
    {"token": Decimal("Infinity")},
    {"token": Decimal("1E+999999")},
    {"token": Decimal("1E-999999")},
    {"token": Decimal("0E+999999999")},
    {"token": 10**400},
    {"token": 1e300},
    {"token": 1j},
    {f"v{number}": 1 for number in range(201)},
)
SESSION: tuple[Any, ...] = (
    True,
    False,
    0,
    5,
    "",
    PRIVATE,
    b"",
    {},
    {"$ne": None},
    [],
    object(),
    KEEP,
)
TTL: tuple[Any, ...] = (
    *(each for each in NO_NUMBERS if each != 1.0),
    *(0, 0.999, -1, 30 * 24 * 3600 + 1, 10**400, timedelta(minutes=1)),
)
KEY_TTL: tuple[Any, ...] = (
    *(each for each in NO_NUMBERS if each != 1.0),
    *(0, 0.999, -1, 366 * 24 * 3600 + 1, 10**400, timedelta(days=3)),
)
LIMIT = (*NO_NUMBERS, None, 0, -1, 1001, 2**31, 2**63, 10**400)
OFFSET = (*NO_NUMBERS, None, -1, 100_001, 2**31, 2**63, 10**400)
STATUS = (*NO_STRINGS, "", "SUCCESS", "Success", "success ", "refused", "$ne", "x" * 10_000, "\x00")
CURSOR = (
    *IDENTIFIER,
    "garbage",
    "=",
    "====",
    "bnVsbA",
    "W10",
    "e30",
    "WzEsMiwzXQ",
    "Im5vdGhpbmci",
    "écrire",
    "../../etc/passwd",
    '{"$gt": ""}',
    base64.b64encode(b"[" * 180).decode(),
    base64.b64encode(b"\xff\xfe\xfd").decode(),
    base64.b64encode(b"[NaN, NaN, NaN]").decode(),
    base64.b64encode(b"[" + b"9" * 150 + b"]").decode(),
)


@dataclass(frozen=True)
class Made:
    """Stands for the id of something that the ledger's past has made."""

    name: str


MADE: dict[str, str] = {}
"""The ids, by name."""


@dataclass(frozen=True)
class Method:
    """A method: a call that succeeds, and wrong values for each of its arguments."""

    good: Mapping[str, Any]
    bad: Mapping[str, Iterable[Any]]
    writes: bool = True
    # What the good call needs changed before an argument's wrong values can be tried.
    without: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def required(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return wrong values for a required argument, so that None is wrong, too."""
    return (*values, None)


WRITE = {
    "metadata": METADATA,
    "idempotency_key": IDENTIFIER,
    "idempotency_ttl": KEY_TTL,
    "session": SESSION,
}
PAGE = {
    "limit": LIMIT,
    "offset": OFFSET,
    "cursor": CURSOR,
    "start_date": MOMENT,
    "end_date": MOMENT,
    "action": IDENTIFIER,
    "include_archived": FLAG,
    "session": SESSION,
}
WHO = {"user_id": required(IDENTIFIER)}

METHODS: dict[str, Method] = {
    "create_user": Method(
        good={
            "user_id": "user-3",
            "credits": 5,
            "membership_tier": "free",
            "membership_expires_at": FUTURE,
        },
        bad={
            **WHO,
            **WRITE,
            "credits": required(OPENING),
            "membership_tier": IDENTIFIER,
            "membership_expires_at": (*MOMENT, KEEP),
        },
    ),
    "get_user": Method({"user_id": USER}, {**WHO, "session": SESSION}, writes=False),
    "get_balance": Method({"user_id": USER}, {**WHO, "session": SESSION}, writes=False),
    "charge": Method(
        good={"user_id": USER, "action": "ai-completion", "variables": {"token": 100}},
        bad={
            **WHO,
            **WRITE,
            "action": required(IDENTIFIER),
            "amount": AMOUNT,
            "variables": VARIABLES,
        },
        without={"amount": ("variables",)},
    ),
    "refund": Method(
        good={"user_id": USER, "amount": 1, "action": "sorry"},
        bad={
            **WHO,
            **WRITE,
            "amount": required(AMOUNT),
            "action": required(IDENTIFIER),
            "transaction_id": IDENTIFIER,
        },
    ),
    "grant": Method(
        good={"user_id": USER, "amount": 1, "action": "bonus"},
        bad={
            **WHO,
            **WRITE,
            "amount": required(AMOUNT),
            "action": required(IDENTIFIER),
            "expires_at": (*MOMENT, PAST),
            "priority": required((*NO_NUMBERS, -1, 101, 2**63)),
            "source": IDENTIFIER,
        },
    ),
    "revoke": Method(
        good={"grant_transaction_id": Made("grant"), "amount": 1, "action": "chargeback"},
        bad={
            **WRITE,
            "grant_transaction_id": required(IDENTIFIER),
            "amount": AMOUNT,
            "action": required(IDENTIFIER),
        },
    ),
    "set_overdraft": Method(
        good={"user_id": USER, "limit": 5},
        bad={**WHO, **WRITE, "limit": required(OPENING)},
    ),
    "place_hold": Method(
        good={"user_id": USER, "action": "ai-completion", "variables": {"token": 100}},
        bad={
            **WHO,
            **WRITE,
            "action": required(IDENTIFIER),
            "amount": AMOUNT,
            "variables": VARIABLES,
            "ttl": required(TTL),
            "overage": required((*NO_STRINGS, *BAD_STRINGS, "Available", PRIVATE)),
            "on_timeout": required((*NO_STRINGS, *BAD_STRINGS, "SETTLE", PRIVATE)),
        },
        without={"amount": ("variables",)},
    ),
    "extend_hold": Method(
        good={"hold_id": Made("hold"), "ttl": 60, "used": 2},
        bad={
            **WRITE,
            "hold_id": required(IDENTIFIER),
            "ttl": TTL,
            "amount": OPENING,
            "used": (*OPENING, 0),
        },
    ),
    "capture_hold": Method(
        good={"hold_id": Made("hold"), "amount": 3, "final": False},
        bad={
            **WRITE,
            "hold_id": required(IDENTIFIER),
            "amount": OPENING,
            "variables": VARIABLES,
            "final": FLAG,
        },
        without={"variables": ("amount",)},
    ),
    "release_hold": Method(
        good={"hold_id": Made("other hold")},
        bad={**WRITE, "hold_id": required(IDENTIFIER)},
    ),
    "get_hold": Method(
        good={"hold_id": Made("hold")},
        bad={"hold_id": required(IDENTIFIER), "session": SESSION},
        writes=False,
    ),
    "get_holds": Method(
        good={"user_id": USER},
        bad={
            **WHO,
            "status": (*NO_STRINGS, *BAD_STRINGS, "ACTIVE", "active ", PRIVATE),
            "limit": LIMIT,
            "session": SESSION,
        },
        writes=False,
    ),
    "upgrade_tier": Method(
        good={"user_id": USER, "target_tier": "enterprise", "membership_expires_at": FUTURE},
        bad={
            **WHO,
            **WRITE,
            "target_tier": required(IDENTIFIER),
            "membership_expires_at": (*MOMENT, "KEEP"),
        },
    ),
    "downgrade_tier": Method(
        good={"user_id": USER, "target_tier": "free"},
        bad={
            **WHO,
            **WRITE,
            "target_tier": required(IDENTIFIER),
            "clear_expiration": FLAG,
        },
    ),
    "renew_tier": Method(
        good={"user_id": USER, "membership_expires_at": FUTURE},
        bad={
            **WHO,
            **WRITE,
            "membership_expires_at": (*MOMENT, KEEP),
            "refill": FLAG,
            "allow_earlier": FLAG,
        },
    ),
    "validate_access": Method(
        good={"user_id": USER, "action": "generate-post"},
        bad={**WHO, "action": required(IDENTIFIER), "session": SESSION},
        writes=False,
    ),
    "quote": Method(
        good={"user_id": USER, "action": "ai-completion", "variables": {"token": 100}},
        bad={**WHO, "action": required(IDENTIFIER), "variables": VARIABLES},
        writes=False,
    ),
    "delete_user": Method(
        good={"user_id": USER},
        bad={**WHO, "requested_by": IDENTIFIER},
        writes=False,
    ),
    "get_history": Method({"user_id": USER}, {**WHO, **PAGE}, writes=False),
    "get_audit_log": Method({"user_id": USER}, {**WHO, **PAGE, "status": STATUS}, writes=False),
}
# Methods without arguments of the caller's.
WITHOUT_INPUT = {"close", "ensure_indexes"}
WRITES = [name for name, method in METHODS.items() if method.writes]
PAGES = ["get_history", "get_audit_log"]


async def make(database: Database, config: CreditConfig) -> None:
    """Make what the good calls name by an id: the user's opening, and two holds of the user's.

    Without audit rows, which some tests count.
    """
    quiet = config.model_copy(update={"audit": AuditConfig(enabled=False)})
    async with CreditLedger(database, quiet) as ledger:
        MADE["grant"] = (await ledger.get_history(USER))[-1].transaction_id
        for name in ("hold", "other hold"):
            hold = await ledger.place_hold(USER, "ai-completion", amount=20, ttl=3600)
            MADE[name] = hold.hold_id
        await ledger.extend_hold(MADE["hold"], used=1)


async def dump(database: Database) -> dict[str, list[Row]]:
    """Return everything in a database."""
    names = sorted(await database.list_collection_names())
    return {name: await database[name].find().sort("_id").to_list(None) for name in names}


async def call(ledger: CreditLedger, name: str, **changes: Any) -> Any:
    """Call a method with good arguments, except for these."""
    method = METHODS[name]
    left_out = {other for argument in changes for other in method.without.get(argument, ())}
    good = {
        name: MADE[value.name] if isinstance(value, Made) else value
        for name, value in method.good.items()
        if name not in left_out
    }
    if "idempotency_ttl" in changes:
        good["idempotency_key"] = "of a call with its own lifetime"
    arguments = good | changes
    return await getattr(ledger, name)(**arguments)


def check_error(error: InvalidRequestError, argument: str) -> None:
    """Check that the error names the argument, quotes no value, and chains no foreign error."""
    assert error.field.split(".")[0] == argument
    assert str(error) == f"{error.field}: {error.reason}"
    assert error.code == "INVALID_REQUEST"
    assert PRIVATE not in f"{error} {error!r}"
    assert error.__cause__ is None
