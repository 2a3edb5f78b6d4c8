"""The model's operations: what a call does to the books, at a moment, in a configuration."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, cast

from credit_mongo import KEEP
from tests.model.books import (
    Books,
    Call,
    Done,
    Facts,
    Refused,
    Remembered,
    Tariff,
    User,
    is_over,
    plain,
)
from tests.model.configurations import Configuration


class Operations:
    """What calls do to the books. Their time is the later of ``now`` and the user's last change."""

    def __init__(self, books: Books, configuration: Configuration) -> None:
        self.books = books
        self.configuration = configuration
        self.tariff = Tariff(configuration)

    def do(self, call: Call, now: datetime, number: int) -> Done:
        """Return the call's result or raise ``Refused``. ``number`` identifies the call."""
        user = self.books.users.get(call.user_id)
        moment = now if user is None else max(now, user.updated_at)
        key = call.key if self.configuration.takes_keys else None
        try:
            known = self._remembered(key, now)
            if known is not None:
                if known.effect != call.effect:
                    raise Refused("IdempotencyConflictError", key=key)  # noqa: TRY301
                return Done(known.done.kind, known.done.facts, replayed=True)
            done = self._do(call, user, moment, number)
        except Refused as refused:
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
                "operation": call.method,
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
        if call.method == "charge":
            return self._charge(call, user, moment, number)
        if call.method in ("refund", "grant"):
            return self._give(call, moment, number)
        return self._change_tier(call, user, moment, number)

    def _create_user(self, call: Call, user: User | None, moment: datetime, number: int) -> Done:
        arguments = call.arguments
        if user is not None:
            raise Refused("UserExistsError", user_id=call.user_id)
        tier, expires_at = arguments["membership_tier"], plain(arguments["membership_expires_at"])
        if tier is not None:
            self.tariff.level(tier)
        _refuse_past(expires_at, moment)
        self.books.users[call.user_id] = User(0, tier, expires_at, 0, moment, moment)
        self._post(call, arguments["credits"], (moment, number), {"tier": tier})
        return Done("User", user_facts(call.user_id, self.books.users[call.user_id]))

    def _charge(self, call: Call, user: User, moment: datetime, number: int) -> Done:
        arguments = call.arguments
        tier = self.tariff.tier_in_force(user, moment)
        how: Facts = {}
        if arguments.get("amount") is not None:
            self.tariff.check_access(call.user_id, call.action, tier)
            cost = arguments["amount"]
        else:
            cost, how = self.tariff.cost(
                call.user_id, call.action, tier, arguments.get("variables")
            )
        if cost > user.credits:
            raise Refused(
                "InsufficientCreditsError",
                user_id=call.user_id,
                required=cost,
                available=user.credits,
            )
        row = self._post(call, -cost, (moment, number), {"tier": tier, **how})
        return Done("ChargeResult", {"cost": cost, **_shown(row)})

    def _give(self, call: Call, moment: datetime, number: int) -> Done:
        amount, charge_id = call.arguments["amount"], call.arguments.get("transaction_id")
        if charge_id is not None:
            holds = self._still_holds(call.user_id, charge_id)
            if amount > holds:
                raise Refused(
                    "RefundExceedsChargeError",
                    transaction_id=charge_id,
                    refundable=holds,
                    requested=amount,
                )
        row = self._post(call, amount, (moment, number), {})
        kind = "RefundResult" if call.method == "refund" else "GrantResult"
        return Done(kind, {"amount": amount, **_shown(row)})

    def _still_holds(self, user_id: str, charge_id: str) -> int:
        own = [row for row in self.books.transactions if row["user_id"] == user_id]
        charges = [
            row
            for row in own
            if row["transaction_id"] == charge_id and row["operation"] == "charge"
        ]
        if not charges:
            raise Refused("TransactionNotFoundError", transaction_id=charge_id)
        refunds = sum(row["amount"] for row in own if row["refund_of"] == charge_id)
        return -int(charges[0]["amount"]) - int(refunds)

    def _change_tier(self, call: Call, user: User, moment: datetime, number: int) -> Done:
        old_tier = user.tier
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
        cap = self.tariff.caps[tier] if call.arguments.get("refill", True) else user.credits
        user.tier, user.expires_at = tier, expires_at
        details = {"oldTier": old_tier, "newTier": tier, "membershipExpiresAt": expires_at}
        row = self._post(call, cap - user.credits, (moment, number), details)
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

    def _post(self, call: Call, amount: int, at: tuple[datetime, int], details: Facts) -> Facts:
        moment, number = at
        user = self.books.users[call.user_id]
        row: Facts = {
            "number": number,
            "transaction_id": None,
            "user_id": call.user_id,
            "seq": user.seq + 1,
            "operation": call.method,
            "action": call.action,
            "amount": amount,
            "balance_before": user.credits,
            "balance_after": user.credits + amount,
            "metadata": call.metadata,
            "idempotency_key": call.key if self.configuration.takes_keys else None,
            "refund_of": call.arguments.get("transaction_id"),
            "created_at": moment,
        }
        user.seq, user.credits, user.updated_at = user.seq + 1, user.credits + amount, moment
        self.books.transactions.append(row)
        if self.configuration.audits:
            facts = {
                "amount": amount,
                "balanceBefore": row["balance_before"],
                "balanceAfter": row["balance_after"],
                **details,
            }
            same = ("number", "user_id", "operation", "action", "metadata", "created_at")
            self.books.audits.append(
                {**{name: row[name] for name in same}, "status": "success", "details": facts}
            )
        return row


def user_facts(user_id: str, user: User) -> Facts:
    """Return a user as ``get_user`` shows it."""
    return {
        "user_id": user_id,
        "credits": user.credits,
        "membership_tier": user.tier,
        "membership_expires_at": user.expires_at,
        "seq": user.seq,
        "created_at": user.created_at,
        "updated_at": user.updated_at,
    }


def _shown(row: Facts) -> Facts:
    names = ("user_id", "action", "balance_before", "balance_after", "created_at", "metadata")
    return {name: row[name] for name in names}


def _refuse_past(expires_at: datetime | None, moment: datetime) -> None:
    if is_over(expires_at, moment):
        raise Refused("InvalidRequestError", field="membership_expires_at", reason="is in the past")


def _invalid_change(call: Call, user: User, target: str | None, reason: str) -> Refused:
    return Refused(
        "InvalidTierChangeError",
        user_id=call.user_id,
        current_tier=user.tier,
        target_tier=target,
        reason=reason,
    )
