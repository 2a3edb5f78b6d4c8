"""Callers that make random calls, one after the other, and record every answer."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import datetime, timezone
from itertools import accumulate
from random import Random
from time import monotonic_ns
from typing import Any, Final, TypeAlias

from credit_mongo import CommitOutcomeUnknownError, CreditError, CreditLedger, StorageError
from tests.soak.journal import Journal, Request
from tests.soak.tariff import OPENING_CREDITS, TIERS, has_parts

__all__ = ["WRITTEN", "Callers", "Share", "hot_and_cold"]

_Write: TypeAlias = Callable[[Random], tuple[str, dict[str, Any]]]

HOT: Final = 6
COLD: Final = 2000
_REMEMBERED: Final = 400
_PAUSE_SECONDS: Final = 0.15


def hot_and_cold() -> list[str]:
    """Return the users that all processes share."""
    return [f"hot-{n}" for n in range(HOT)] + [f"cold-{n}" for n in range(COLD)]


# Writes with their weights. A linked refund gets the id of an acknowledged charge.
_WRITES: Final[Mapping[_Write, int]] = {
    lambda r: ("charge", {"action": r.choice(("post", "post", "image"))}): 25,
    lambda r: ("charge", {"action": "post", "amount": r.randint(1, 90)}): 20,
    lambda r: ("charge", {"action": "tokens", "variables": {"n": r.randrange(200)}}): 18,
    lambda _: ("charge", {"action": "post", "amount": 10**9}): 2,
    lambda r: ("grant", {"amount": r.randint(1, 100), "action": "promotion"}): 13,
    lambda _: ("refund of a charge", {"amount": 1, "action": "fault"}): 10,
    lambda r: ("refund", {"amount": r.randint(1, 9), "action": "goodwill"}): 3,
    lambda r: ("upgrade_tier", {"target_tier": r.choice(TIERS)}): 3,
    lambda r: ("downgrade_tier", {"target_tier": r.choice(TIERS)}): 2,
    lambda r: ("renew_tier", {"membership_expires_at": None, "refill": r.random() < 0.5}): 1,
    lambda r: (
        "create_user",
        {
            "credits": r.choice((0, OPENING_CREDITS)),
            "membership_tier": r.choice((None, *TIERS)),
        },
    ): 3,
}
_OF_HOLDS: Final = ("extend_hold", "capture_hold", "release_hold")
# Writes of users with lots and holds. They name a grant or a hold that was acknowledged.
_PARTS: Final[Mapping[_Write, int]] = {
    lambda r: (
        "grant",
        {
            "amount": r.randint(1, 100),
            "action": "promotion",
            "expires_in": r.choice((1, 60, 600)),
            "priority": r.choice((50, 50, 10, 90)),
        },
    ): 20,
    lambda r: ("revoke", {"action": "chargeback", "amount": r.randint(1, 20)}): 5,
    lambda r: ("set_overdraft", {"limit": r.choice((0, 100, 500))}): 3,
    lambda r: (
        "place_hold",
        {
            "action": "post",
            "amount": r.randint(1, 90),
            "ttl": r.choice((1, 30, 300)),
            "overage": r.choice(("available", "debt", "reject")),
            "on_timeout": r.choice(("settle", "settle", "release")),
        },
    ): 30,
    lambda r: ("extend_hold", {"ttl": r.choice((1, 60)), "used": r.randint(0, 90)}): 15,
    lambda r: ("capture_hold", {"amount": r.randint(0, 120), "final": r.random() < 0.7}): 22,
    lambda _: ("release_hold", {}): 5,
}
_PARTS_MAKERS: Final = tuple(_PARTS)
_PARTS_WEIGHTS: Final = tuple(accumulate(_PARTS.values()))
_PARTS_SHARE: Final = 0.6
_MAKERS: Final = tuple(_WRITES)
_WEIGHTS: Final = tuple(accumulate(_WRITES.values()))
WRITTEN: Final = frozenset(make(Random(0))[0].split()[0] for make in (*_MAKERS, *_PARTS_MAKERS))
"""The methods that callers write with."""


def _some_write(random: Random) -> tuple[str, dict[str, Any]]:
    [make] = random.choices(_MAKERS, cum_weights=_WEIGHTS)
    return make(random)


@dataclass(frozen=True)
class Share:
    """Which of ``count`` processes this is, and how often it calls for another's users."""

    number: int = 0
    count: int = 1
    crossing: float = 0.0


class Callers:
    """All callers of one process, on one ledger."""

    def __init__(
        self,
        ledger: CreditLedger,
        journal: Journal,
        seed: str,
        timeout: float,
        share: Share | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.longest_overrun = 0.0
        self.stopping = asyncio.Event()
        self._ledger = ledger
        self._journal = journal
        self._seed = seed
        self._timeout = timeout
        self.shared = hot_and_cold()
        self._clock = clock
        self._share = share or Share()
        self._mine = self.shared[self._share.number :: self._share.count]
        self._own: list[str] = []
        self._charges: deque[tuple[str, str, int]] = deque(maxlen=_REMEMBERED)
        self._grants: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED)
        self._holds: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED)
        self._done: deque[Request] = deque(maxlen=_REMEMBERED)
        self._keys = 0

    async def open_accounts(self) -> None:
        """Create the users that all processes share."""
        arguments = {"credits": OPENING_CREDITS, "membership_tier": None}
        await asyncio.gather(
            *(
                self.call(Request("create_user", user_id, arguments, f"opening {user_id}"))
                for user_id in self.shared
            )
        )

    async def run(self, callers: int, calls_each: int | None = None) -> None:
        """Call until ``stopping`` is set, or ``calls_each`` times per caller."""
        await asyncio.gather(
            *(self._caller(Random(f"{self._seed} {n}"), calls_each) for n in range(callers))
        )

    async def call(self, request: Request, cancel_after: float | None = None) -> str:
        """Make one call, record it, and return the outcome."""
        call_id = self._journal.begin(request)
        began = monotonic_ns()
        outcome, facts = await self._outcome(request, call_id, cancel_after)
        self._journal.end(call_id, outcome, facts)
        overrun = (monotonic_ns() - began) / 1e9 - self._timeout
        self.longest_overrun = max(self.longest_overrun, overrun)
        self.counts[outcome if request.is_write else f"read {outcome}"] += 1
        if outcome == "done" and request.key is not None:
            self._remember(request, facts)
        return outcome

    async def _outcome(
        self, request: Request, call_id: str, cancel_after: float | None
    ) -> tuple[str, dict[str, Any]]:
        work = self._send(request, call_id)
        try:
            if cancel_after is None:
                return "done", _facts(await work)
            return "done", _facts(await asyncio.wait_for(work, cancel_after))
        except asyncio.TimeoutError:
            return "unknown", {"code": "CANCELLED"}
        except CommitOutcomeUnknownError as error:
            return "unknown", {"code": error.code}
        except StorageError as error:
            return "failed", {"code": error.code, "text": str(error)}
        except CreditError as error:
            return "refused", {"code": error.code, **_plain(vars(error))}

    async def _send(self, request: Request, call_id: str) -> Any:
        method = getattr(self._ledger, request.operation)
        if not request.is_write:
            return await method(request.user_id)
        arguments = dict(request.arguments)
        subject = arguments.pop("subject", request.user_id)
        if arguments.get("expires_at") is not None:
            moment = arguments["expires_at"] / 1000
            arguments["expires_at"] = datetime.fromtimestamp(moment, timezone.utc)
        return await method(
            subject,
            **arguments,
            idempotency_key=request.key,
            metadata={"call": call_id},
        )

    def _remember(self, request: Request, facts: dict[str, Any]) -> None:
        self._done.append(request)
        if request.operation == "charge" and facts["cost"] > 0:
            self._charges.append((request.user_id, facts["transaction_id"], facts["cost"]))
        elif request.operation == "create_user" and request.user_id not in self.shared:
            self._own.append(request.user_id)
        elif request.operation == "grant" and has_parts(request.user_id):
            self._grants.append((request.user_id, facts["transaction_id"]))
        elif request.operation == "place_hold":
            self._holds.append((request.user_id, facts["hold_id"]))

    async def _caller(self, random: Random, calls: int | None) -> None:
        while not self.stopping.is_set() and calls != 0:
            calls = None if calls is None else calls - 1
            request = self._choose(random)
            cancel_after = random.uniform(0, 0.4) if random.random() < 0.01 else None
            outcome = await self.call(request, cancel_after)
            # Some repeat at once, some later, and some leave the outcome open.
            while outcome in ("unknown", "failed") and not self.stopping.is_set():
                await asyncio.sleep(random.uniform(0, 2 * _PAUSE_SECONDS))
                if not request.is_write or request.key is None or random.random() < 0.3:
                    break
                outcome = await self.call(request)

    def _choose(self, random: Random) -> Request:
        user_id = self._user(random)
        chance = random.random()
        if chance < 0.03:
            return Request(random.choice(("get_user", "get_balance")), user_id, {}, None)
        if chance < 0.06 and self._done:
            return random.choice(self._done)
        if chance < 0.07 and self._done:
            used = random.choice(self._done)
            return Request("grant", used.user_id, {"amount": 7, "action": "theft"}, used.key)
        operation, arguments = _some_write(random)
        if has_parts(user_id) and random.random() < _PARTS_SHARE:
            user_id, operation, arguments = self._write_on_parts(random, user_id)
        if operation == "create_user":
            user_id = f"new-{self._journal.process}-{random.getrandbits(48):x}"
        elif operation == "refund of a charge":
            operation = "refund"
            if self._charges:
                user_id, charge_id, cost = random.choice(self._charges)
                amount = random.randint(1, cost)
                arguments = {"amount": amount, "action": "fault", "transaction_id": charge_id}
        self._keys += 1
        key = f"{self._journal.process}/{self._keys}" if random.random() < 0.93 else None
        return Request(operation, user_id, arguments, key)

    def _write_on_parts(self, random: Random, user_id: str) -> tuple[str, str, dict[str, Any]]:
        """Choose a call on lots, debts or holds, and complete it by what was acknowledged."""
        [make] = random.choices(_PARTS_MAKERS, cum_weights=_PARTS_WEIGHTS)
        operation, arguments = make(random)
        if "expires_in" in arguments:
            seconds = arguments.pop("expires_in")
            # Whole minutes, so that lots merge.
            moment = (int(self._clock().timestamp() + seconds) // 60 + 1) * 60_000
            return user_id, operation, {**arguments, "expires_at": moment}
        if operation not in ("revoke", *_OF_HOLDS):
            return user_id, operation, arguments
        known = self._grants if operation == "revoke" else self._holds
        if not known:
            return user_id, "set_overdraft", {"limit": 100}
        # Mostly one of the last, since others are settled already.
        back = min(int(random.expovariate(0.2)), len(known) - 1)
        user_id, subject = known[-1 - back]
        return user_id, operation, {**arguments, "subject": subject}

    def _user(self, random: Random) -> str:
        chance = random.random()
        users, hot = self.shared, HOT
        if random.random() >= self._share.crossing:
            users, hot = self._mine, HOT // self._share.count
        if chance < 0.12:
            return users[random.randrange(hot)]
        if chance < 0.25 and self._own:
            return random.choice(self._own)
        if chance < 0.255:
            return "nobody"
        return random.choice(users)


def _facts(result: Any) -> dict[str, Any]:
    if isinstance(result, int):
        return {"credits": result}
    return _plain({each.name: getattr(result, each.name) for each in fields(result)})


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the values that JSON can hold, with moments in milliseconds."""
    return {name: _as_json(value) for name, value in facts.items() if not name.startswith("_")}


def _as_json(value: Any) -> Any:
    if hasattr(value, "timestamp"):
        return int(value.timestamp() * 1000)
    if isinstance(value, tuple):
        return [_as_json(each) for each in value]
    return _plain(asdict(value)) if is_dataclass(value) and not isinstance(value, type) else value
