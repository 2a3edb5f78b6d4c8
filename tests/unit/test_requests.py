"""What callers ask for: the limits of every argument, and when two requests are the same."""

from __future__ import annotations

import enum
import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields, replace
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any

import bson
import pytest
from bson import Binary, Code, DatetimeMS, DBRef, Decimal128, Int64, ObjectId, Regex, Timestamp
from bson.raw_bson import RawBSONDocument
from hypothesis import given
from hypothesis import strategies as st

from credit_mongo import KEEP
from credit_mongo.core.decision import Request
from credit_mongo.core.operations.capture_hold import CaptureHoldRequest
from credit_mongo.core.operations.charge import ChargeRequest
from credit_mongo.core.operations.create_user import CreateUserRequest
from credit_mongo.core.operations.downgrade_tier import DowngradeTierRequest
from credit_mongo.core.operations.extend_hold import ExtendHoldRequest
from credit_mongo.core.operations.grant import GrantRequest
from credit_mongo.core.operations.place_hold import PlaceHoldRequest
from credit_mongo.core.operations.refund import RefundRequest
from credit_mongo.core.operations.release_hold import ReleaseHoldRequest
from credit_mongo.core.operations.renew_tier import RenewTierRequest
from credit_mongo.core.operations.revoke import RevokeRequest
from credit_mongo.core.operations.set_overdraft import SetOverdraftRequest
from credit_mongo.core.operations.upgrade_tier import UpgradeTierRequest
from credit_mongo.core.values import (
    LARGEST_AMOUNT,
    check_amount,
    check_flag,
    check_identifier,
    check_moment,
    to_milliseconds,
)
from credit_mongo.core.variables import exact_variables
from credit_mongo.errors import InvalidRequestError
from credit_mongo.storage.rows import CODEC_OPTIONS, LARGEST_METADATA_BYTES, copy_metadata

UTC = timezone.utc
# Stands in wrong values, and must not come back in an error.
PRIVATE = "private-value"


class Text(str):
    """A subclass of str."""

    __slots__ = ()

    def __str__(self) -> str:
        return PRIVATE


class Word(str, enum.Enum):
    """Names as an enumeration."""

    POST = "post"


class Number(enum.IntEnum):
    """Amounts as an enumeration."""

    TEN = 10


class Moment(datetime):
    """A subclass of datetime, like those of test clocks and data frames."""


class Autumn(tzinfo):
    """A time zone on the night when its clocks go back, so that one hour comes twice."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1 if moment is not None and moment.fold else 2)

    def tzname(self, _: datetime | None) -> str | None:
        return None

    def dst(self, _: datetime | None) -> timedelta | None:
        return None


class Astray(tzinfo):
    """A time zone with an impossible offset: two days, a number, or an error."""

    def __init__(self, offset: Any) -> None:
        self.offset = offset

    def utcoffset(self, _: datetime | None) -> timedelta | None:
        if isinstance(self.offset, Exception):
            raise self.offset
        result: timedelta | None = self.offset
        return result

    def tzname(self, _: datetime | None) -> str | None:
        return None

    def dst(self, _: datetime | None) -> timedelta | None:
        return None


def refusal_of(call: Callable[..., object], *arguments: object) -> InvalidRequestError:
    """Return a wrong call's error, after checking that it quotes and chains nothing."""
    with pytest.raises(InvalidRequestError) as caught:
        call(*arguments)
    error = caught.value
    assert str(error) == f"{error.field}: {error.reason}"
    assert PRIVATE not in f"{error} {error!r}"
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    return error


# --- Identifiers ----------------------------------------------------------------------------------

NO_STRINGS: dict[str, Any] = {
    "none": None,
    "true": True,
    "zero": 0,
    "number": 5,
    "float": 1.5,
    "NaN": float("nan"),
    "bytes": PRIVATE.encode(),
    "operator": {"$ne": PRIVATE},
    "operator that matches all": {"$gt": ""},
    "empty dict": {},
    "list": [PRIVATE],
    "tuple": (PRIVATE,),
    "set": {PRIVATE},
    "ObjectId": ObjectId(),
    "UUID": uuid.uuid4(),
    "pattern": re.compile(PRIVATE),
    "Regex": Regex("."),
    "datetime": datetime(2026, 1, 1, tzinfo=UTC),
    "object": object(),
    "type": str,
}
BAD_STRINGS = {
    "empty": "",
    "256 characters": "x" * 256,
    "256 characters of three bytes": "写" * 256,
    "a million characters": "x" * 1_000_000,
    "NUL": f"{PRIVATE}\x00",
    "NUL alone": "\x00",
    "line break": f"{PRIVATE}\n",
    "carriage return": "a\rb",
    "tab": "a\tb",
    "escape": "\x1b[31m",
    "delete": "a\x7f",
    "C1 control": "a\x85b",
    "last C1 control": "a\x9fb",
    "high surrogate": f"{PRIVATE}\ud800",
    "low surrogate": "\udfffx",
    "surrogates of a pair": "\ud83d\ude00",
}
GOOD_STRINGS = {
    "one character": "a",
    "255 characters": "x" * 255,
    "255 characters of four bytes": "😀" * 255,
    "operator": "$ne",
    "dots": "a.b.c",
    "spaces": " a b ",
    "quotes": "a'b\"c\\",
    "braces": "{a}",
    "percent": "%s",
    "null in words": "null",
    "a number in words": "5",
    "an object id in words": "0" * 24,
    "first printable": " ",
    "after the controls": "\xa0",
    "before the surrogates": "\ud7ff",
    "after the surrogates": "\ue000",
    "beyond the basic plane": "\U0010ffff",
    "combining": "e\u0301",
    "right to left": "\u202eabc",
}


@pytest.mark.parametrize("value", NO_STRINGS.values(), ids=NO_STRINGS)
def test_an_identifier_is_a_string_and_nothing_else(value: Any) -> None:
    """Anything else could be an operator in the database, so it never gets there."""
    error = refusal_of(check_identifier, "user_id", value)
    assert (error.field, error.reason) == ("user_id", f"must be a str, not {type(value).__name__}")


@pytest.mark.parametrize("value", BAD_STRINGS.values(), ids=BAD_STRINGS)
def test_an_identifier_has_1_to_255_characters_and_no_controls(value: str) -> None:
    """Identifiers that are too short, too long or unprintable are refused."""
    assert refusal_of(check_identifier, "action", value).field == "action"


@pytest.mark.parametrize("value", GOOD_STRINGS.values(), ids=GOOD_STRINGS)
def test_any_other_string_is_an_identifier_unchanged(value: str) -> None:
    """Nothing is trimmed, folded or normalised, and the database can hold the string."""
    assert check_identifier("key", value) == value
    assert bson.decode(bson.encode({"_id": value}))["_id"] == value


@given(st.text(max_size=300))
def test_an_identifier_is_judged_by_its_characters_alone(value: str) -> None:
    """Any text either comes back unchanged as an identifier, or is refused with its field."""
    controls = any(
        ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F or 0xD800 <= ord(c) < 0xE000 for c in value
    )
    if 1 <= len(value) <= 255 and not controls:
        assert check_identifier("key", value) == value
    else:
        assert refusal_of(check_identifier, "key", value).field == "key"


@pytest.mark.parametrize(("value", "plain"), [(Text("post"), "post"), (Word.POST, "post")])
def test_a_subclass_of_str_becomes_a_plain_str(value: str, plain: str) -> None:
    """A member of an enumeration becomes its value, without the caller's class."""
    checked = check_identifier("action", value)
    assert checked == plain
    assert type(checked) is str


# --- Amounts and flags ----------------------------------------------------------------------------

NO_AMOUNTS: dict[str, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "float": 5.0,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "decimal": Decimal(5),
    "fraction": Fraction(5),
    "complex": 5 + 0j,
    "string": "5",
    "private string": PRIVATE,
    "bytes": b"5",
    "Decimal128": Decimal128("5"),
    "list": [5],
    "operator": {"$inc": 5},
    "object": object(),
}


@pytest.mark.parametrize("value", NO_AMOUNTS.values(), ids=NO_AMOUNTS)
def test_an_amount_is_an_int_and_nothing_else(value: Any) -> None:
    """No bool, float, Decimal or string counts as a number of credits."""
    error = refusal_of(check_amount, "amount", value)
    assert (error.field, error.reason) == ("amount", f"must be an int, not {type(value).__name__}")


@pytest.mark.parametrize(
    "value",
    [0, -1, -(2**53), 2**53, 2**63 - 1, 2**63, 2**64, 10**400, 1 << 20_000, Int64(0)],
    ids=lambda value: f"{value.bit_length()} bits",
)
def test_an_amount_lies_within_its_limits(value: int) -> None:
    """The limits are 1 and 2**53 - 1. The error names the limits, not the value."""
    error = refusal_of(check_amount, "amount", value)
    assert (error.field, error.reason) == ("amount", f"must be from 1 to {2**53 - 1}")


@pytest.mark.parametrize("value", [1, 2, 2**31, 2**53 - 1])
def test_every_amount_within_the_limits_is_accepted(value: int) -> None:
    """This includes numbers that floats and 32 bits cannot hold."""
    assert check_amount("amount", value) == value


def test_opening_credits_may_be_zero() -> None:
    """Opening credits can be zero, but -1 is refused."""
    assert check_amount("credits", 0, least=0) == 0
    error = refusal_of(lambda: check_amount("credits", -1, least=0))
    assert (error.field, error.reason) == ("credits", f"must be from 0 to {LARGEST_AMOUNT}")


@pytest.mark.parametrize("value", [Number.TEN, Int64(10)])
def test_a_subclass_of_int_becomes_a_plain_int(value: int) -> None:
    """A member of an enumeration and BSON's int64 become plain ints."""
    checked = check_amount("amount", value)
    assert checked == 10
    assert type(checked) is int


@pytest.mark.parametrize("value", [None, 0, 1, 1.0, "true", "", b"", [], {}, Number.TEN, object()])
def test_a_flag_is_true_or_false(value: Any) -> None:
    """Values that only look like a flag are refused."""
    error = refusal_of(check_flag, "refill", value)
    assert (error.field, error.reason) == ("refill", f"must be a bool, not {type(value).__name__}")


@pytest.mark.parametrize("value", [True, False])
def test_both_flags_are_accepted(value: bool) -> None:
    """True and False are accepted unchanged."""
    assert check_flag("refill", value) is value


# --- Moments --------------------------------------------------------------------------------------

KATHMANDU = timezone(timedelta(hours=5, minutes=45))
LOS_ANGELES, KIRITIMATI = timezone(timedelta(hours=-8)), timezone(timedelta(hours=14))
WEST, EAST = timezone(timedelta(hours=-23, minutes=-59)), timezone(timedelta(hours=23, minutes=59))

NO_MOMENTS: dict[str, Any] = {
    "none": None,
    "true": True,
    "seconds": 1_770_000_000,
    "float": 1.77e9,
    "NaN": float("nan"),
    "string": "2026-03-01T12:00:00Z",
    "private string": PRIVATE,
    "bytes": b"2026",
    "date": date(2026, 3, 1),
    "timedelta": timedelta(days=1),
    "operator": {"$currentDate": True},
    "Timestamp": Timestamp(1, 1),
    "DatetimeMS": DatetimeMS(0),
    "KEEP": KEEP,
    "naive": datetime(2026, 3, 1),  # noqa: DTZ001
    "naive, of a kind of its own": Moment(2026, 3, 1),
    "last moment, west": datetime.max.replace(tzinfo=WEST),
    "last moment in Los Angeles": datetime.max.replace(tzinfo=LOS_ANGELES),
    "first moment, east": datetime.min.replace(tzinfo=EAST),
    "first moment in Kathmandu": datetime.min.replace(tzinfo=KATHMANDU),
    "in a zone of no offset": datetime(2026, 3, 1, tzinfo=Astray(None)),
    "two days away": datetime(2026, 3, 1, tzinfo=Astray(timedelta(days=2))),
    "five somethings away": datetime(2026, 3, 1, tzinfo=Astray(5)),
    "in a zone that breaks": datetime(2026, 3, 1, tzinfo=Astray(KeyError(PRIVATE))),
}


@pytest.mark.parametrize("value", NO_MOMENTS.values(), ids=NO_MOMENTS)
def test_a_moment_is_a_datetime_with_a_time_zone(value: Any) -> None:
    """Naive datetimes, other types, and moments outside the UTC calendar are refused."""
    assert refusal_of(check_moment, "start_date", value).field == "start_date"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2026, 3, 1, 12, tzinfo=UTC), datetime(2026, 3, 1, 12, tzinfo=UTC)),
        (
            datetime(2026, 3, 1, 12, 0, 0, 999_999, tzinfo=UTC),
            datetime(2026, 3, 1, 12, 0, 0, 999_000, tzinfo=UTC),
        ),
        (
            datetime(2026, 3, 1, 12, tzinfo=KATHMANDU),
            datetime(2026, 3, 1, 6, 15, tzinfo=UTC),
        ),
        (datetime(2026, 3, 1, 12, tzinfo=WEST), datetime(2026, 3, 2, 11, 59, tzinfo=UTC)),
        # The hour that comes twice: the second is an hour later.
        (
            datetime(2026, 10, 25, 2, 30, tzinfo=Autumn(), fold=0),
            datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
        ),
        (
            datetime(2026, 10, 25, 2, 30, tzinfo=Autumn(), fold=1),
            datetime(2026, 10, 25, 1, 30, tzinfo=UTC),
        ),
        (
            datetime.max.replace(tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
        ),
        (
            datetime.max.replace(tzinfo=KIRITIMATI),
            datetime(9999, 12, 31, 9, 59, 59, 999_000, tzinfo=UTC),
        ),
        (datetime.min.replace(tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)),
        (Moment(2026, 3, 1, 12, tzinfo=UTC), datetime(2026, 3, 1, 12, tzinfo=UTC)),
    ],
)
def test_a_moment_becomes_utc_in_whole_milliseconds(value: datetime, expected: datetime) -> None:
    """The value in memory is the same as the database returns."""
    checked = check_moment("start_date", value)
    assert checked == expected
    assert checked.tzinfo is UTC
    assert checked.microsecond == expected.microsecond
    stored = bson.decode(bson.encode({"at": checked}), codec_options=CODEC_OPTIONS)
    assert stored["at"] == checked


def test_milliseconds_are_cut_before_1970_as_after() -> None:
    """A moment is never moved forward, and cutting it again changes nothing."""
    for moment in (
        datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
        datetime(2026, 1, 1, 0, 0, 0, 1, UTC),
    ):
        cut = to_milliseconds(moment)
        assert timedelta(0) <= moment - cut < timedelta(milliseconds=1)
        assert to_milliseconds(cut) == cut


# --- Metadata -------------------------------------------------------------------------------------


def nested(depth: int, leaf: object = None) -> dict[str, Any]:
    """Return dictionaries nested this deep."""
    value: Any = leaf
    for _ in range(depth):
        value = {"a": value}
    result: dict[str, Any] = value
    return result


def nested_lists(depth: int) -> dict[str, Any]:
    """Return lists nested this deep."""
    value: Any = None
    for _ in range(depth):
        value = [value]
    return {"a": value}


def cyclic_dict() -> dict[str, Any]:
    """Return a dictionary that contains itself."""
    value: dict[str, Any] = {}
    value["a"] = {"b": [value]}
    return value


def cyclic_list() -> dict[str, Any]:
    """Return a list that contains itself."""
    value: list[Any] = []
    value.append(value)
    return {"a": value}


class Liar(Mapping[str, Any]):
    """A mapping that breaks while it is read."""

    def __getitem__(self, name: str) -> Any:
        raise KeyError(PRIVATE)

    def __iter__(self) -> Any:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


BROKEN_BSON = b"\x0d\x00\x00\x00\x02a\x00\xff\x00\x00\x00z\x00"

BAD_METADATA: dict[str, Any] = {
    # Not a mapping
    "true": True,
    "number": 5,
    "NaN": float("nan"),
    "string": PRIVATE,
    "bytes": PRIVATE.encode(),
    "list": [("a", PRIVATE)],
    "set": {PRIVATE},
    "object": object(),
    "type": dict,
    # Keys
    "key that is a number": {5: PRIVATE},
    "key that is bytes": {b"a": PRIVATE},
    "key that is none": {None: PRIVATE},
    "key that is a tuple": {("a", "b"): PRIVATE},
    "key with NUL": {"a\x00b": PRIVATE},
    "inner key with NUL": {"a": [{"b\x00": PRIVATE}]},
    "key with a surrogate": {"\ud800": PRIVATE},
    "inner key that is a number": {"a": {"b": {5: PRIVATE}}},
    # Values
    "object as value": {"a": object()},
    "set as value": {"a": {PRIVATE}},
    "decimal": {"a": Decimal("1.5")},
    "date": {"a": date(2026, 1, 1)},
    "complex": {"a": 1j},
    "exception": {"a": ValueError(PRIVATE)},
    "int of 64 bits": {"a": 2**63},
    "int below 64 bits": {"a": -(2**63) - 1},
    "surrogate": {"a": f"{PRIVATE}\ud800"},
    "moment outside of the calendar": {"a": datetime.max.replace(tzinfo=WEST)},
    "milliseconds outside of the calendar": {"a": DatetimeMS(2**62)},
    "pattern with NUL": {"a": Regex("a\x00b")},
    "UUID of three bytes": {"a": Binary(PRIVATE[:3].encode(), 4)},
    "broken BSON": RawBSONDocument(BROKEN_BSON),
    "broken BSON inside": {"a": RawBSONDocument(BROKEN_BSON)},
    # Shape
    "itself": cyclic_dict(),
    "itself in a list": cyclic_list(),
    "too deep": nested(101),
    "too deep for the server": nested(181),
    "far too deep": nested(2000),
    "deeper than the stack": nested(100_000),
    "lists too deep": nested_lists(101),
    "lists deeper than the stack": nested_lists(100_000),
    "too large": {"a": "x" * LARGEST_METADATA_BYTES},
    "far too large": {"a": "x" * 20_000_000},
    "too many keys": {str(number): number for number in range(5000)},
    "a mapping that breaks": Liar(),
}


@pytest.mark.parametrize("value", BAD_METADATA.values(), ids=BAD_METADATA)
def test_metadata_that_cannot_be_stored_is_refused(value: Any) -> None:
    """Each error is the library's own, names the field, and quotes nothing."""
    assert refusal_of(copy_metadata, value).field == "metadata"


GOOD_METADATA: dict[str, dict[str, Any]] = {
    "empty": {},
    "dots": {"a.b": 1, ".": 2, "a..b": 3},
    "dollars": {"$set": {"credits": 10**9}, "$where": "1", "a": {"$gt": ""}, "$": 1},
    "empty key": {"": 1},
    "long key": {"k" * 5000: 1},
    "an id of its own": {"_id": 5, "a": 1},
    "a reference": {"a": {"$ref": "users", "$id": "user-1"}},
    "a reference at the top": {"$ref": "users", "$id": "user-1"},
    "a reference with more": {"a": {"$ref": "users", "$id": 1, "$db": "x", "more": True}},
    "what only looks like a reference": {"a": {"$ref": 5, "$id": None}},
    "a reference in a reference": {"a": {"$ref": "a", "$id": {"$ref": "b", "$id": 1}}},
    "our own words": {"userId": "other", "amount": -5, "status": "success", "result": {}},
    "none": {"a": None},
    "bool": {"a": True, "b": False},
    "floats": {"a": 0.1, "b": float("inf"), "c": -0.0},
    "ints": {"a": 2**63 - 1, "b": -(2**63), "c": 0},
    "strings": {"a": "", "b": "\x00\n", "c": "😀"},
    "lists": {"a": [1, [2, [3]], {"b": []}]},
    "bytes": {"a": b"\x00\xff"},
    "decimal": {"a": Decimal128("0.1")},
    "moment": {"a": datetime(2026, 3, 1, 12, 0, 0, 1000, tzinfo=UTC)},
    "ids": {"a": ObjectId(), "b": uuid.uuid4()},
    "pattern": {"a": Regex("a.*", "i")},
    "code": {"a": Code("return 1")},
    "timestamp": {"a": Timestamp(1, 2)},
    "as deep as it may be": nested(99, {}),
}


@pytest.mark.parametrize("value", GOOD_METADATA.values(), ids=GOOD_METADATA)
def test_metadata_is_stored_verbatim(value: dict[str, Any]) -> None:
    """Any BSON document is accepted, and the database returns what was stored."""
    copied = copy_metadata(value)
    assert copied == value
    assert copy_metadata(copied) == value


def test_missing_metadata_is_none_and_not_an_empty_document() -> None:
    """None and an empty document stay different."""
    assert copy_metadata(None) is None
    assert copy_metadata({}) == {}


def test_metadata_may_have_16_kib_and_not_a_byte_more() -> None:
    """The limit counts the document's BSON. The error has both sizes."""
    overhead = len(bson.encode({"a": ""}))
    largest = {"a": "x" * (16 * 1024 - overhead)}
    assert copy_metadata(largest) == largest
    largest["a"] += "x"
    assert refusal_of(copy_metadata, largest).reason == "takes 16385 bytes of at most 16384"


def test_metadata_may_be_nested_but_less_than_the_server_allows() -> None:
    """Metadata is nested in other documents, so its limit lies well below the server's 180."""
    assert copy_metadata(nested(99)) == nested(99)
    assert copy_metadata(nested_lists(98)) == nested_lists(98)
    assert refusal_of(copy_metadata, nested(101)).field == "metadata"
    assert refusal_of(copy_metadata, nested_lists(101)).field == "metadata"


def test_metadata_is_copied_when_the_call_is_made() -> None:
    """A caller that changes its objects afterwards changes no record, at any depth."""
    inner: dict[str, Any] = {"b": [1, 2]}
    given_: dict[str, Any] = {"a": inner}
    copied = copy_metadata(given_)
    inner["b"].append(3)
    given_["c"] = 4
    assert copied == {"a": {"b": [1, 2]}}


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (OrderedDict(a=OrderedDict(b=1)), {"a": {"b": 1}}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({"a": Text("x")}, {"a": "x"}),
        ({"a": Int64(5)}, {"a": 5}),
        ({"a": DBRef("users", 1)}, {"a": {"$ref": "users", "$id": 1}}),
        (RawBSONDocument(bson.encode({"a": 1})), {"a": 1}),
        ({"a": datetime(2026, 1, 1)}, {"a": datetime(2026, 1, 1, tzinfo=UTC)}),  # noqa: DTZ001
    ],
    ids=["mappings", "tuple", "string", "int64", "DBRef", "raw", "naive moment"],
)
def test_metadata_comes_back_as_plain_values(value: Any, plain: dict[str, Any]) -> None:
    """Mappings become dicts and sequences lists, the same as in a replay or the history."""
    copied = copy_metadata(value)
    assert copied == plain
    assert type(copied) is dict
    assert [type(item) for item in copied.values()] in (
        [type(item) for item in plain.values()],
        [Int64],
    )


# --- Fingerprints ---------------------------------------------------------------------------------

AT = datetime(2027, 1, 1, tzinfo=UTC)
COMMON: dict[str, Any] = {"user_id": "u", "transaction_id": "0" * 24, "key": "k"}

CREATE = CreateUserRequest(**COMMON, credits=5, membership_tier="pro", membership_expires_at=AT)
CHARGE = ChargeRequest(**COMMON, action="a", amount=None, variables=None)
REFUND = RefundRequest(**COMMON, action="a", amount=5, charge_id="c" * 24)
GRANT = GrantRequest(**COMMON, action="a", amount=5)
UPGRADE = UpgradeTierRequest(**COMMON, target_tier="pro", membership_expires_at=AT)
DOWNGRADE = DowngradeTierRequest(**COMMON, target_tier="pro", clear_expiration=False)
RENEW = RenewTierRequest(**COMMON, membership_expires_at=AT, refill=True)
REVOKE = RevokeRequest(**COMMON, action="a", amount=5, grant_id="c" * 24)
OVERDRAFT = SetOverdraftRequest(**COMMON, limit=5)
MINUTE = timedelta(minutes=1)
PLACE = PlaceHoldRequest(
    **COMMON,
    action="a",
    amount=None,
    variables=None,
    ttl=MINUTE,
    overage="available",
    on_timeout="settle",
)
EXTEND = ExtendHoldRequest(**COMMON, hold_id="h" * 24, ttl=MINUTE, amount=5, used=5)
CAPTURE = CaptureHoldRequest(**COMMON, hold_id="h" * 24, amount=None, variables=None, is_final=True)
RELEASE = ReleaseHoldRequest(**COMMON, hold_id="h" * 24)
REQUESTS: list[Request[Any]] = [
    *(CREATE, CHARGE, REFUND, GRANT, UPGRADE, DOWNGRADE, RENEW, REVOKE, OVERDRAFT),
    *(PLACE, EXTEND, CAPTURE, RELEASE),
]

ONE = exact_variables({"n": 1})

OTHER_EFFECTS: list[tuple[Request[Any], dict[str, Any]]] = [
    *[(request, {"user_id": "v"}) for request in REQUESTS],
    (CREATE, {"credits": 6}),
    (CREATE, {"membership_tier": None}),
    (CREATE, {"membership_tier": "None"}),
    (CREATE, {"membership_expires_at": None}),
    (CREATE, {"membership_expires_at": AT + timedelta(milliseconds=1)}),
    (CHARGE, {"action": "b"}),
    (CHARGE, {"amount": 1}),
    (CHARGE, {"variables": {}}),
    (CHARGE, {"variables": ONE}),
    (replace(CHARGE, variables=ONE), {"variables": exact_variables({"n": 2})}),
    (replace(CHARGE, variables=ONE), {"variables": exact_variables({"m": 1})}),
    (replace(CHARGE, variables=ONE), {"variables": exact_variables({"n": 1, "m": 1})}),
    (replace(CHARGE, variables=ONE), {"variables": exact_variables({"n": 1 + 1e-15})}),
    (REFUND, {"action": "b"}),
    (REFUND, {"amount": 6}),
    (REFUND, {"charge_id": None}),
    (REFUND, {"charge_id": "d" * 24}),
    (GRANT, {"action": "b"}),
    (GRANT, {"amount": 6}),
    (GRANT, {"expires_at": AT}),
    (GRANT, {"priority": 49}),
    (GRANT, {"source": "promo"}),
    (replace(GRANT, source="promo"), {"source": "None"}),
    (REVOKE, {"action": "b"}),
    (REVOKE, {"amount": None}),
    (REVOKE, {"grant_id": "d" * 24}),
    (OVERDRAFT, {"limit": 6}),
    (PLACE, {"action": "b"}),
    (PLACE, {"amount": 5}),
    (PLACE, {"variables": ONE}),
    (PLACE, {"ttl": MINUTE * 2}),
    (PLACE, {"overage": "debt"}),
    (PLACE, {"on_timeout": "release"}),
    (EXTEND, {"hold_id": "i" * 24}),
    (EXTEND, {"ttl": None}),
    (EXTEND, {"amount": 6}),
    (EXTEND, {"used": 6}),
    (CAPTURE, {"hold_id": "i" * 24}),
    (CAPTURE, {"amount": 5}),
    (CAPTURE, {"variables": ONE}),
    (CAPTURE, {"is_final": False}),
    (RELEASE, {"hold_id": "i" * 24}),
    (UPGRADE, {"target_tier": "max"}),
    (UPGRADE, {"membership_expires_at": None}),
    (UPGRADE, {"membership_expires_at": KEEP}),
    (replace(UPGRADE, membership_expires_at=None), {"membership_expires_at": KEEP}),
    (DOWNGRADE, {"target_tier": "free"}),
    (DOWNGRADE, {"clear_expiration": True}),
    (RENEW, {"membership_expires_at": None}),
    (RENEW, {"refill": False}),
]


@pytest.mark.parametrize(
    ("request_", "changes"),
    OTHER_EFFECTS,
    ids=[f"{r.operation}-{'-'.join(changes)}" for r, changes in OTHER_EFFECTS],
)
def test_fields_that_decide_the_effect_decide_the_fingerprint(
    request_: Request[Any], changes: dict[str, Any]
) -> None:
    """A key cannot be reused for a request that differs in any of these fields."""
    assert replace(request_, **changes).fingerprint != request_.fingerprint


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: str(request.operation))
def test_fields_without_effect_do_not_change_the_fingerprint(request_: Request[Any]) -> None:
    """Metadata, the key and its lifetime, the attempt's id and permissions may differ."""
    changes: dict[str, Any] = {"metadata": {"a": 1}, "key": "other", "key_lifetime": MINUTE}
    same = replace(request_, **changes, transaction_id="1" * 24)
    if isinstance(same, RenewTierRequest):
        same = replace(same, allow_earlier=True)
    assert same.fingerprint == request_.fingerprint


def test_every_field_of_every_request_is_accounted_for() -> None:
    """A new field must be added to one of the two tests above."""
    for request in REQUESTS:
        without_say = {"transaction_id", "key", "key_lifetime", "metadata"}
        if isinstance(request, RenewTierRequest):
            without_say.add("allow_earlier")
        with_say = {
            name
            for other, changes in OTHER_EFFECTS
            if type(other) is type(request)
            for name in changes
        }
        assert with_say | without_say == {field.name for field in fields(request) if field.init}


def test_no_two_operations_share_a_fingerprint() -> None:
    """Equal words in all fields do not make two operations the same."""
    alike: list[Request[Any]] = [
        CreateUserRequest(**COMMON, credits=5, membership_tier=None, membership_expires_at=None),
        ChargeRequest(**COMMON, action="a", amount=5, variables=None),
        RefundRequest(**COMMON, action="a", amount=5, charge_id=None),
        GrantRequest(**COMMON, action="a", amount=5),
        UpgradeTierRequest(**COMMON, target_tier="a", membership_expires_at=None),
        DowngradeTierRequest(**COMMON, target_tier="a", clear_expiration=True),
        RenewTierRequest(**COMMON, membership_expires_at=None, refill=True),
    ]
    assert len({request.fingerprint for request in alike}) == len(alike)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("u", "a', 'b"), ("u', 'a", "b")),
        (("u", "None"), ("u, None", "None")),
        (("a\\", "b"), ("a", "\\b")),
        (("a", 'b"c'), ('a"b', "c")),
    ],
)
def test_fields_do_not_run_into_each_other(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Quotes and commas in a name cannot imitate another pair of names."""
    first, second = (
        replace(GRANT, user_id=user_id, action=action).fingerprint
        for user_id, action in (one, other)
    )
    assert first != second


@pytest.mark.parametrize(
    "variables",
    [
        {"n": 1, "m": 0.1},
        {"m": 0.1, "n": 1},
        {"n": 1.0, "m": 0.1},
        {"n": Decimal("1.00"), "m": Decimal("0.10")},
        {"n": Decimal("1E+0"), "m": Decimal("1E-1")},
        {"n": Int64(1), "m": 0.1},
        {"n": 1, "m": 0.1, "usage": {"cached": 5}, "none": None, "endless": float("inf"), "a b": 1},
    ],
)
def test_equal_variables_make_equal_fingerprints(variables: dict[str, Any]) -> None:
    """1, 1.0 and Decimal("1.00") are one number. Nulls and the order make no difference."""
    same = replace(CHARGE, variables=exact_variables(variables))
    expected = replace(CHARGE, variables={"n": Fraction(1), "m": Fraction(1, 10)})
    assert same.fingerprint == expected.fingerprint


def test_a_moment_is_the_same_in_every_zone() -> None:
    """For an expiry, only the moment itself counts."""
    in_kathmandu = check_moment("expiry", AT.astimezone(KATHMANDU))
    assert replace(RENEW, membership_expires_at=in_kathmandu).fingerprint == RENEW.fingerprint


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: str(request.operation))
def test_a_fingerprint_tells_nothing_and_is_the_same_in_every_process(
    request_: Request[Any],
) -> None:
    """It is a digest of fixed length that contains none of the user's words."""
    assert re.fullmatch("[0-9a-f]{40}", request_.fingerprint)
    assert request_.fingerprint == replace(request_).fingerprint


def test_fingerprints_stay_what_they_are() -> None:
    """Today's version reads yesterday's records, so a changed fingerprint would break replays."""
    assert CREATE.fingerprint == "a93e5f00a1aac0b7fcd1d324ffdcee024f0c0df1"
    assert CHARGE.fingerprint == "c3399fb0afd6358e0c459576b72090b1a619a34a"
    assert RENEW.fingerprint == "0630d8612c29b88705f9a057f59c87df23bbc7e2"


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: str(request.operation))
def test_a_request_is_frozen_and_slotted(request_: Request[Any]) -> None:
    """A request cannot change after its check."""
    for name in ("user_id", "key", "novel"):
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            setattr(request_, name, "x")
    assert not hasattr(request_, "__dict__")
