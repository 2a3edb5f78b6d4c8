"""Every operation that writes: what it needs beforehand, and the calls it consists of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeAlias
from uuid import uuid4

from bson import ObjectId

from credit_mongo import (
    CreditConfig,
    CreditError,
    CreditLedger,
    Hold,
    HoldClosedError,
    HoldExceededError,
    InsufficientCreditsError,
    RefundExceedsChargeError,
    RevokeExceedsGrantError,
    UserExistsError,
)
from tests.faults.calls import Call
from tests.integration.promises import Database

__all__ = ["OPERATIONS", "Operation", "charge_of", "new_key", "prices"]

OPENING_CREDITS: Final = 1_000_000
NEXT_YEAR: Final = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=365)

Prepare: TypeAlias = Callable[[CreditLedger, Database, str], Awaitable[list[Call]]]


@dataclass(frozen=True)
class Operation:
    """``prepare`` creates what the calls need, and returns the calls to make at once.

    ``is_repeated``: the call was made before, with the same key.
    ``in_turns``: the ledger takes turns with others; ``turn_is_taken``: another has the turn.
    ``in_sessions``: tests also run it in an application's own transaction.
    """

    name: str
    prepare: Prepare = field(repr=False)
    is_repeated: bool = False
    in_turns: bool = False
    turn_is_taken: bool = False
    in_sessions: bool = True


def prices(**options: Any) -> CreditConfig:
    """Prices, tiers and caps, with the settings that a test needs."""
    return CreditConfig(
        costs={"post": {"default": 10, "premium": 8}},
        membership={
            "tiers": {"free": 0, "premium": 1, "enterprise": 2},
            "credits_caps": {"free": 100, "premium": 2000, "enterprise": 10000},
        },
        **options,
    )


def new_key() -> str:
    """Return a key that no other call uses."""
    return f"key-{uuid4().hex}"


def charge_of(user_id: str, *, key: bool = True, **facts: Any) -> Call:
    """A charge of ten."""
    return Call("charge", user_id, ("post",), key=new_key() if key else None, **facts)


def refused_charge_of(user_id: str) -> Call:
    """A charge that exceeds every balance."""
    return charge_of(
        user_id, options={"amount": 100 * OPENING_CREDITS}, refused_with=InsufficientCreditsError
    )


async def _open(ledger: CreditLedger, user_id: str, tier: str | None = None) -> None:
    await ledger.create_user(user_id, credits=OPENING_CREDITS, membership_tier=tier)


def _with_account(*make: Callable[[str], Call], tier: str | None = None) -> Prepare:
    async def prepare(ledger: CreditLedger, _: Database, user_id: str) -> list[Call]:
        await _open(ledger, user_id, tier)
        return [make_one(user_id) for make_one in make]

    return prepare


def _keyed(method: str, *arguments: Any, **options: Any) -> Callable[[str], Call]:
    return lambda user_id: Call(method, user_id, arguments, options, key=new_key())


async def _new_user(_ledger: CreditLedger, _: Database, user_id: str) -> list[Call]:
    options = {"credits": 5, "membership_tier": "free", "membership_expires_at": NEXT_YEAR}
    return [Call("create_user", user_id, (), options, key=new_key())]


async def _existing_user(ledger: CreditLedger, _: Database, user_id: str) -> list[Call]:
    await _open(ledger, user_id)
    return [Call("create_user", user_id, key=new_key(), refused_with=UserExistsError)]


async def _linked_refund(ledger: CreditLedger, _: Database, user_id: str) -> list[Call]:
    await _open(ledger, user_id)
    charge = await ledger.charge(user_id, "post")
    options = {"action": "sorry", "transaction_id": charge.transaction_id}
    return [Call("refund", user_id, (6,), options, key=new_key())]


async def _refused_linked_refund(ledger: CreditLedger, _: Database, user_id: str) -> list[Call]:
    [call] = await _linked_refund(ledger, _, user_id)
    return [
        Call(
            "refund", user_id, (11,), call.options, call.key, refused_with=RefundExceedsChargeError
        )
    ]


async def _repeated_charge(ledger: CreditLedger, _: Database, user_id: str) -> list[Call]:
    await _open(ledger, user_id)
    call = charge_of(user_id, is_repeated=True)
    await call.on(ledger)
    return [call]


async def _charge_with_expired_key(
    ledger: CreditLedger, database: Database, user_id: str
) -> list[Call]:
    """A charge whose key has a record that expired but was not yet removed."""
    await _open(ledger, user_id)
    call = charge_of(user_id)
    moment = datetime.now(timezone.utc) - timedelta(days=2)
    await database["idempotency_records"].insert_one(
        {
            "_id": call.key,
            "operation": "charge",
            "userId": user_id,
            "fingerprint": "of long ago",
            "result": {},
            "createdAt": moment,
            "expiresAt": moment + timedelta(days=1),
        }
    )
    return [call]


async def _refund_to_a_lot(ledger: CreditLedger, _: Database, user_id: str) -> list[Call]:
    """A refund of a charge that took the last of a lot and some of the base."""
    await _open(ledger, user_id)
    await ledger.grant(user_id, 7, action="bonus", expires_at=NEXT_YEAR)
    charge = await ledger.charge(user_id, "post")
    options = {"action": "sorry", "transaction_id": charge.transaction_id}
    return [Call("refund", user_id, (6,), options, key=new_key())]


async def _revocation(ledger: CreditLedger, _: Database, user_id: str) -> list[Call]:
    """Of a lot of which some is spent: the rest of it, and some of the base."""
    await _open(ledger, user_id)
    grant = await ledger.grant(user_id, 15, action="bonus", expires_at=NEXT_YEAR)
    await ledger.charge(user_id, "post")
    options = {"action": "chargeback"}
    return [
        Call("revoke", user_id, (), options, key=new_key(), subject=grant.transaction_id),
    ]


async def _refused_revocation(ledger: CreditLedger, _: Database, user_id: str) -> list[Call]:
    [call] = await _revocation(ledger, _, user_id)
    return [replace(call, arguments=(16,), refused_with=RevokeExceedsGrantError)]


def _new_hold(user_id: str) -> Call:
    return Call("place_hold", user_id, ("post",), {"amount": 20}, key=new_key(), leaves={})


def _refused_hold(user_id: str) -> Call:
    options = {"amount": 100 * OPENING_CREDITS}
    refused_with = InsufficientCreditsError
    return Call(
        "place_hold", user_id, ("post",), options, new_key(), refused_with=refused_with, leaves={}
    )


def _of_hold(
    method: str,
    options: Mapping[str, Any],
    leaves: Mapping[str, Any] | None = None,
    *,
    refused_with: type[CreditError] | None = None,
    **placed: Any,
) -> Prepare:
    """A call on a hold of 20 units, of which 7 are in a lot."""

    async def prepare(ledger: CreditLedger, _: Database, user_id: str) -> list[Call]:
        await _open(ledger, user_id)
        await ledger.grant(user_id, 7, action="bonus", expires_at=NEXT_YEAR)
        hold = await ledger.place_hold(user_id, "post", amount=20, **{"ttl": 600, **placed})
        return [_call_on(hold, method, options, leaves, refused_with)]

    return prepare


def _call_on(
    hold: Hold,
    method: str,
    options: Mapping[str, Any],
    leaves: Mapping[str, Any] | None = None,
    refused_with: type[CreditError] | None = None,
) -> Call:
    return Call(
        method,
        hold.user_id,
        (),
        options,
        new_key(),
        refused_with=refused_with,
        subject=hold.hold_id,
        leaves=None if leaves is None else {"_id": ObjectId(hold.hold_id), **leaves},
    )


def _with_ends_due(make: Callable[[str, Hold, Hold], Call]) -> Prepare:
    """A user of whom a lot and a hold have ended, which nobody has posted yet.

    The end of the hold is a row of its own. Another hold, which is still open, pins a part of the
    lot, so that this part ends when that hold does.
    """

    async def prepare(ledger: CreditLedger, database: Database, user_id: str) -> list[Call]:
        now = datetime.now(timezone.utc)
        past = now - timedelta(hours=1)
        async with CreditLedger(database, prices(), clock=lambda: past) as earlier:
            await _open(earlier, user_id)
            await earlier.grant(user_id, 30, action="bonus", expires_at=past + timedelta(minutes=5))
            still_open = await earlier.place_hold(user_id, "post", ttl=86_400)
            ended = await earlier.place_hold(user_id, "post", amount=25, ttl=60)
            await earlier.extend_hold(ended.hold_id, used=12)
        return [make(user_id, still_open, ended)]

    return prepare


_BATCH: Final = (
    charge_of,
    charge_of,
    refused_charge_of,
    _keyed("grant", 7, action="bonus"),
    lambda user_id: charge_of(user_id, key=False),
)

OPERATIONS: Final = (
    Operation("create_user", _new_user),
    Operation("create_user, refused", _existing_user),
    Operation("charge", _with_account(charge_of)),
    Operation("charge without a key", _with_account(lambda user: charge_of(user, key=False))),
    Operation("charge, refused", _with_account(refused_charge_of)),
    Operation("charge, asked again", _repeated_charge, is_repeated=True),
    Operation("charge with an expired key", _charge_with_expired_key),
    Operation("refund", _with_account(_keyed("refund", 5, action="sorry"))),
    Operation("refund of a charge", _linked_refund),
    Operation("refund of a charge, refused", _refused_linked_refund),
    Operation("grant", _with_account(_keyed("grant", 5, action="bonus"))),
    Operation(
        "grant of a lot",
        _with_account(_keyed("grant", 5, action="bonus", expires_at=NEXT_YEAR, source="promotion")),
    ),
    Operation("refund to a lot", _refund_to_a_lot),
    Operation("revoke", _revocation),
    Operation("revoke, refused", _refused_revocation),
    Operation("set_overdraft", _with_account(_keyed("set_overdraft", 50))),
    Operation("place_hold", _with_account(_new_hold)),
    Operation("place_hold, refused", _with_account(_refused_hold)),
    Operation("extend_hold", _of_hold("extend_hold", {"ttl": 900, "used": 5}, {"used": 5})),
    Operation("capture_hold", _of_hold("capture_hold", {"amount": 23})),
    Operation("capture_hold in part", _of_hold("capture_hold", {"amount": 5, "final": False})),
    Operation(
        "capture_hold, refused",
        _of_hold("capture_hold", {"amount": 21}, refused_with=HoldExceededError, overage="reject"),
    ),
    Operation("release_hold", _of_hold("release_hold", {}, {"status": "released"})),
    Operation("charge after ends", _with_ends_due(lambda user, _, __: charge_of(user))),
    Operation("place_hold after ends", _with_ends_due(lambda user, _, __: _new_hold(user))),
    Operation(
        "release_hold after ends",
        _with_ends_due(
            lambda _, hold, __: _call_on(hold, "release_hold", {}, {"status": "released"})
        ),
    ),
    Operation(
        "capture_hold after its end",
        _with_ends_due(lambda _, __, ended: _call_on(ended, "capture_hold", {"amount": 15})),
    ),
    Operation(
        "extend_hold after its end, refused",
        _with_ends_due(
            lambda _, __, ended: _call_on(
                ended, "extend_hold", {"ttl": 90}, {"used": -1}, HoldClosedError
            )
        ),
    ),
    Operation("upgrade_tier", _with_account(_keyed("upgrade_tier", "premium"), tier="free")),
    Operation("downgrade_tier", _with_account(_keyed("downgrade_tier", "free"), tier="premium")),
    Operation(
        "renew_tier",
        _with_account(_keyed("renew_tier", membership_expires_at=NEXT_YEAR), tier="premium"),
    ),
    Operation("five at once", _with_account(*_BATCH), in_sessions=False),
    Operation("charge in turns", _with_account(charge_of), in_turns=True, in_sessions=False),
    Operation(
        "charge while another has the turn",
        _with_account(charge_of),
        in_turns=True,
        turn_is_taken=True,
        in_sessions=False,
    ),
)
