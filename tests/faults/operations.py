"""Every operation that writes: what it needs beforehand, and the calls it consists of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeAlias
from uuid import uuid4

from credit_mongo import (
    CreditConfig,
    CreditLedger,
    InsufficientCreditsError,
    RefundExceedsChargeError,
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
    Operation("set_overdraft", _with_account(_keyed("set_overdraft", 50))),
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
