"""The model's operations: what a call does to the books, at a moment, in a configuration."""

from __future__ import annotations

import copy
from datetime import datetime, timedelta
from typing import Any, Final, cast
from unittest.mock import ANY

from credit_mongo import KEEP
from tests.model.books import (
    Call,
    Done,
    Facts,
    Refused,
    Remembered,
    User,
    is_over,
    plain,
)
from tests.model.hold_rules import FACTS_OF_ROW, HoldOperations, refuse_lack
from tests.model.parts import Legs, Lot, shown_lots

OF_SUBJECTS: Final = ("revoke", "extend_hold", "capture_hold", "release_hold")
"""Calls that name a hold or a grant instead of a user."""


class Operations(HoldOperations):
    """What calls do to the books. Their time is the later of ``now`` and the user's last change."""

    def do(self, call: Call, now: datetime, number: int, *, in_session: bool = False) -> Done:
        """Return the call's result or raise ``Refused``. ``number`` identifies the call.

        A refusal leaves nothing in an application's transaction, not even what time decided.
        """
        user = self.books.users.get(call.user_id)
        moment = now if user is None else max(now, user.updated_at)
        key = call.key if self.configuration.takes_keys else None
        if call.method in OF_SUBJECTS and self.books.owner_of(call) is None:
            # It has no user, so it reaches no account and no audit log.
            missing = {"revoke": ("TransactionNotFoundError", "transaction_id")}
            kind, name = missing.get(call.method, ("HoldNotFoundError", "hold_id"))
            raise Refused(kind, **{name: call.subject})
        before = copy.deepcopy(self.books) if in_session else None
        try:
            known = self._remembered(key, now)
            if known is not None:
                if known.effect != call.effect:
                    raise Refused("IdempotencyConflictError", key=key)  # noqa: TRY301
                return Done(known.done.kind, known.done.facts, replayed=True)
            if user is not None:
                self.advance(call.user_id, moment)
            done = self._do(call, user, moment, number)
        except Refused as refused:
            if before is not None:
                self.books.restore(before)
            self._audit_refusal(call, refused, moment, number)
            raise
        if key is not None:
            lifetime = timedelta(seconds=self.configuration.remembers_for_seconds)
            self.books.keys[key] = Remembered(call.effect, done, moment + lifetime, number)
        return done

    def _remembered(self, key: str | None, now: datetime) -> Remembered | None:
        known = self.books.keys.get(key) if key is not None else None
        return None if known is None or is_over(known.expires_at, now) else known

    def _audit_refusal(self, call: Call, refused: Refused, moment: datetime, number: int) -> None:
        if refused.kind == "InvalidRequestError" or not self.configuration.audits:
            return
        self.books.audits.append(
            {
                "number": number,
                "user_id": call.user_id,
                "operation": call.operation,
                "action": call.action,
                "status": "failed",
                "details": {"code": refused.code},
                "metadata": call.metadata,
                "created_at": moment,
            }
        )

    def _do(self, call: Call, user: User | None, moment: datetime, number: int) -> Done:
        if call.method == "create_user":
            return self._create_user(call, user, moment, number)
        if user is None:
            raise Refused("UserNotFoundError", user_id=call.user_id)
        operations = {
            "charge": self._charge,
            "refund": self._refund,
            "grant": self._grant,
            "revoke": self._revoke,
            "set_overdraft": self._set_overdraft,
            "place_hold": self.place,
            "extend_hold": self.of_hold,
            "capture_hold": self.of_hold,
            "release_hold": self.of_hold,
        }
        return operations.get(call.method, self._change_tier)(call, user, (moment, number))

    def _create_user(self, call: Call, user: User | None, moment: datetime, number: int) -> Done:
        arguments = call.arguments
        if user is not None:
            raise Refused("UserExistsError", user_id=call.user_id)
        tier, expires_at = arguments["membership_tier"], plain(arguments["membership_expires_at"])
        if tier is not None:
            self.tariff.level(tier)
        _refuse_past(expires_at, moment)
        self.books.users[call.user_id] = opened = User(
            tier=tier, expires_at=expires_at, seq=0, created_at=moment, updated_at=moment
        )
        opened.base = arguments["credits"]
        self.note(call, 0, (moment, number), {"tier": tier})
        return Done("User", user_facts(call.user_id, self.books.users[call.user_id]))

    def _charge(self, call: Call, user: User, at: tuple[datetime, int]) -> Done:
        arguments, (moment, _) = call.arguments, at
        tier = self.tariff.tier_in_force(user, moment)
        how: Facts = {}
        if arguments.get("amount") is not None:
            self.tariff.check_access(call.user_id, call.action, tier)
            cost = arguments["amount"]
        else:
            cost, how = self.tariff.cost(
                call.user_id, call.action, tier, arguments.get("variables")
            )
        refuse_lack(user, call.user_id, cost)
        before, legs = user.credits, user.take(user.find(cost))
        row = self.note(call, before, at, {"tier": tier, **how}, legs=legs)
        return Done("ChargeResult", {"cost": cost, **_shown(row)})

    def _grant(self, call: Call, user: User, at: tuple[datetime, int]) -> Done:
        """Repay a debt first. The rest is the base's, or a lot's."""
        amount, ends = call.arguments["amount"], plain(call.arguments.get("expires_at"))
        priority, source = call.arguments.get("priority", 50), call.arguments.get("source")
        _refuse_past(ends, at[0], "expires_at")
        before, legs, place = user.credits, [], None
        is_lot = ends is not None or source is not None or priority != 50
        rest = amount
        if is_lot and user.base < 0:
            rest = max(amount + user.base, 0)
        if not is_lot or rest < amount:
            repaid = amount - rest if is_lot else amount
            legs.append((user.give(None, repaid), repaid))
        if is_lot and rest:
            place = user.give(None, rest, like=Lot(at[1], 0, ends, priority, source))
            legs.append((place, rest))
        row = self.note(call, before, at, {}, legs=legs)
        # A new lot has the id of this grant, which the ledger makes.
        lot_id = ANY if place is not None and place.number == at[1] else place and place.lot_id
        return Done("GrantResult", {"amount": amount, "lot_id": lot_id, **_shown(row)})

    def _refund(self, call: Call, user: User, at: tuple[datetime, int]) -> Done:
        amount, charge_id = call.arguments["amount"], call.arguments.get("transaction_id")
        before: int = user.credits
        legs: Legs = []
        if charge_id is None:
            user.give(None, amount)
        else:
            holds = self._still_holds(call.user_id, charge_id)
            if amount > holds:
                raise Refused(
                    "RefundExceedsChargeError",
                    transaction_id=charge_id,
                    refundable=holds,
                    requested=amount,
                )
            legs = self._give_back(user, charge_id, amount)
        row = self.note(call, before, at, {}, legs=legs, refund_of=charge_id)
        expired = 0
        if any(place is not None for place, _ in legs):
            expired = self._end_lots(call.user_id, at[0], at[0])
        shown = {**_shown(row), "balance_after": row["balance_after"] - expired}
        return Done("RefundResult", {"amount": amount, "expired_amount": expired, **shown})

    def _give_back(self, user: User, charge_id: str, amount: int) -> Legs:
        """Give back unit by unit, as it were: the last taken first, after what was refunded."""
        charge = self.books.transaction(charge_id)
        assert charge is not None
        taken = charge["legs"] or [(None, charge["amount"])]
        passed = -charge["amount"] - self._still_holds(str(charge["user_id"]), charge_id)
        legs: Legs = []
        position = 0
        for place, units in reversed(taken):
            first, last = position, position - units
            position = last
            part = min(last, passed + amount) - max(first, passed)
            if part > 0:
                into = user.give(None, part) if place is None else user.give(None, part, like=place)
                if legs and legs[-1][0] is into:
                    legs[-1] = (into, legs[-1][1] + part)
                else:
                    legs.append((into, part))
        return legs

    def _ended_in(self, given: Lot | None) -> int:
        """Return how many units ended in the lot that a grant opened or went into."""
        return sum(
            -units
            for row in self.books.transactions
            if row["operation"] == "expire"
            for place, units in row["legs"]
            if given is not None
            and place is not None
            and (place.number, place.ends) == (given.number, given.ends)
        )

    def _revoke(self, call: Call, user: User, at: tuple[datetime, int]) -> Done:
        """From the grant's lot, then from the base as far as the overdraft goes."""
        grant = self.books.transaction(call.subject)
        if grant is None or grant["operation"] not in ("grant", "create_user"):
            raise Refused("TransactionNotFoundError", transaction_id=call.subject)
        revoked = sum(
            row["uncollected"] - row["amount"]
            for row in self.books.transactions
            if row["revoke_of"] == call.subject
        )
        left = grant["amount"] - revoked
        wanted = call.arguments.get("amount")
        wanted = left if wanted is None else wanted
        if wanted > left or wanted == 0:
            raise Refused(
                "RevokeExceedsGrantError",
                transaction_id=call.subject,
                revocable=left,
                requested=wanted,
            )
        before: int = user.credits
        legs: Legs = []
        given = next((place for place, _ in grant["legs"] if place is not None), None)
        lot = None if given is None else user.lot_like(given)
        # What has ended in the lot is gone already.
        most = min(wanted, max(left - self._ended_in(given), 0))
        if lot is not None:
            part = min(most, lot.units - user.pinned_in(lot))
            legs.append((lot, part))
        rest = most - sum(units for _, units in legs)
        free = user.base + user.overdraft - user.pinned_in(None)
        legs.append((None, max(min(rest, free), 0)))
        legs = user.take(legs)
        taken = before - user.credits
        lack = wanted - taken
        facts = {"uncollected": lack, "revoke_of": call.subject}
        row = self.note(call, before, at, {"uncollected": lack}, legs=legs, **facts)
        return Done(
            "RevokeResult",
            {
                "amount": taken,
                "uncollected": lack,
                "grant_transaction_id": call.subject,
                **_shown(row),
            },
        )

    def _set_overdraft(self, call: Call, user: User, at: tuple[datetime, int]) -> Done:
        old, user.overdraft = user.overdraft, call.arguments["limit"]
        told = {"oldOverdraft": old, "newOverdraft": user.overdraft}
        row = self.note(call, user.credits, at, told)
        return Done(
            "OverdraftResult",
            {
                "user_id": call.user_id,
                "old_limit": old,
                "new_limit": user.overdraft,
                "balance": row["balance_after"],
                "created_at": at[0],
                "metadata": call.metadata,
            },
        )

    def _still_holds(self, user_id: str, charge_id: str) -> int:
        own = [row for row in self.books.transactions if row["user_id"] == user_id]
        charges = [
            row
            for row in own
            if row["transaction_id"] == charge_id and row["operation"] in ("charge", "capture")
        ]
        if not charges:
            raise Refused("TransactionNotFoundError", transaction_id=charge_id)
        refunds = sum(row["amount"] for row in own if row["refund_of"] == charge_id)
        return -int(charges[0]["amount"]) - int(refunds)

    def _change_tier(self, call: Call, user: User, at: tuple[datetime, int]) -> Done:
        old_tier, (moment, _) = user.tier, at
        if call.method == "renew_tier":
            if old_tier is None:
                raise _invalid_change(call, user, None, "there is no tier to renew")
            tier = old_tier
            expires_at = plain(call.arguments["membership_expires_at"])
            _refuse_past(expires_at, moment)
            self.tariff.level(tier)
            ends, may = user.expires_at, call.arguments.get("allow_earlier", False)
            if None not in (expires_at, ends) and expires_at < ends and not may:
                reason = f"the new expiry {expires_at} is before the current one {ends}"
                reason += "; allow_earlier=True shortens the membership"
                raise _invalid_change(call, user, tier, reason)
        else:
            tier = call.arguments["target_tier"]
            self._check_direction(call, user, tier)
            expires_at = self._new_expiry(call, user, moment)
        before = user.credits
        if call.arguments.get("refill", True):
            # Not below what is held of it; what is not there can't be held.
            kept = min(user.pinned_in(None), user.base)
            user.base = max(self._new_base(user.base, self.tariff.caps[tier]), kept)
        user.tier, user.expires_at = tier, expires_at
        details = {"oldTier": old_tier, "newTier": tier, "membershipExpiresAt": expires_at}
        row = self.note(call, before, at, details)
        return Done(
            "TierChangeResult",
            {
                "user_id": call.user_id,
                "old_tier": old_tier,
                "new_tier": tier,
                "old_credits": row["balance_before"],
                "new_credits": row["balance_after"],
                "credits_delta": row["amount"],
                "membership_expires_at": expires_at,
                "created_at": moment,
            },
        )

    def _new_base(self, base: int, cap: int) -> int:
        """Return the base after a change: a debt counts against what the tier gives."""
        policy = self.configuration.on_change
        if policy == "add":
            return base + cap
        if policy == "keep":
            return base
        given = cap if base >= 0 else cap + base
        return max(base, given) if policy == "raise" else given

    def _check_direction(self, call: Call, user: User, target: str) -> None:
        goes_up = call.method == "upgrade_tier"
        level = self.tariff.level(target)
        if user.tier is None:
            if not goes_up:
                raise _invalid_change(call, user, target, "there is no tier yet")
            return
        current = self.tariff.level(user.tier)
        if target == user.tier:
            raise _invalid_change(call, user, target, "it is the current tier")
        if goes_up and level <= current:
            raise _invalid_change(call, user, target, "it is not higher")
        if not goes_up and level >= current:
            raise _invalid_change(call, user, target, "it is not lower")

    def _new_expiry(self, call: Call, user: User, moment: datetime) -> datetime | None:
        if call.method == "downgrade_tier":
            return None if call.arguments["clear_expiration"] else user.expires_at
        wanted: Any = plain(call.arguments["membership_expires_at"])
        if wanted is KEEP:
            return None if is_over(user.expires_at, moment) else user.expires_at
        _refuse_past(wanted, moment)
        return cast("datetime | None", wanted)


def user_facts(user_id: str, user: User) -> Facts:
    """Return a user as ``get_user`` shows it."""
    return {
        "user_id": user_id,
        "credits": user.credits,
        "held": user.held,
        "overdraft": user.overdraft,
        "available": user.available,
        "lots": shown_lots(user),
        "membership_tier": user.tier,
        "membership_expires_at": user.expires_at,
        "seq": user.seq,
        "created_at": user.created_at,
        "updated_at": user.updated_at,
    }


def _shown(row: Facts) -> Facts:
    return {name: row[name] for name in FACTS_OF_ROW}


def _refuse_past(
    expires_at: datetime | None, moment: datetime, field: str = "membership_expires_at"
) -> None:
    if is_over(expires_at, moment):
        raise Refused("InvalidRequestError", field=field, reason="is in the past")


def _invalid_change(call: Call, user: User, target: str | None, reason: str) -> Refused:
    return Refused(
        "InvalidTierChangeError",
        user_id=call.user_id,
        current_tier=user.tier,
        target_tier=target,
        reason=reason,
    )
