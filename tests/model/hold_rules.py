"""The model's holds, and what time decides: the ends of lots and holds."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from unittest.mock import ANY

from tests.model.books import Books, Call, Done, Facts, Refused, Tariff, User, to_units
from tests.model.configurations import Configuration, Price
from tests.model.parts import Held, Legs, Lot, shown_legs

LATE = timedelta(days=1)
FACTS_OF_ROW = ("user_id", "action", "balance_before", "balance_after", "created_at", "metadata")


class HoldOperations:
    """What calls on holds do to the books, and what time does."""

    def __init__(self, books: Books, configuration: Configuration) -> None:
        self.books = books
        self.configuration = configuration
        self.tariff = Tariff(configuration)

    # What time decides

    def advance(self, user_id: str, now: datetime) -> None:
        """Post what has ended by now, each at its moment: lots before the holds of that moment."""
        user = self.books.users[user_id]
        moments = {lot.ends for lot in user.lots if lot.ends is not None}
        moments |= {hold.ends for hold in user.holds}
        for moment in sorted(moment for moment in moments if moment <= now):
            self._end_lots(user_id, moment, now)
            for hold in [hold for hold in user.holds if hold.ends == moment]:
                self._end_hold(user, hold, now)
                self._end_lots(user_id, moment, now)

    def _end_lots(self, user_id: str, moment: datetime, now: datetime) -> int:
        user = self.books.users[user_id]
        ended = 0
        for lot, units in user.end_lots(moment):
            before = user.credits
            legs = user.move([(lot, units)])
            call = Call("expire", user_id, {"action": "expire"})
            self._note_due(call, (before, legs), (moment, now), {})
            ended -= units
        return ended

    def _end_hold(self, user: User, hold: Held, now: datetime) -> None:
        uncollected, before = hold.uncollected, user.credits
        taken, legs = user.take_for(hold, hold.used if hold.settles else hold.claimed)
        user.holds.remove(hold)
        hold.status, hold.pins = "expired", []
        if taken:
            facts = {"hold_id": hold.hold_id, "uncollected": hold.uncollected - uncollected}
            call = Call("capture", hold.user_id, {"action": hold.action})
            self._note_due(call, (before, legs), (hold.ends, now), facts)

    def _note_due(
        self, call: Call, moved: tuple[int, Legs], moments: tuple[datetime, datetime], facts: Facts
    ) -> None:
        """Note a row that time led to."""
        user, (before, legs) = self.books.users[call.user_id], moved
        due, now = moments
        details: Facts = {}
        if "hold_id" in facts:
            details = {"holdId": facts["hold_id"], "uncollected": facts["uncollected"]}
        self.note(
            call,
            before,
            (max(due, user.updated_at), -1),
            details,
            legs=legs,
            written_at=now,
            **facts,
        )

    def note(
        self,
        call: Call,
        before: int,
        at: tuple[datetime, int],
        details: Facts,
        *,
        legs: Legs = [],  # noqa: B006 - never changed
        **facts: object,
    ) -> Facts:
        """Note a transaction that has moved the user's credits from ``before`` to what they are."""
        moment, number = at
        user = self.books.users[call.user_id]
        key = call.key if self.configuration.takes_keys else None
        row: Facts = {
            "number": number,
            "transaction_id": None,
            "user_id": call.user_id,
            "seq": user.seq + 1,
            "operation": call.operation,
            "action": call.action,
            "amount": user.credits - before,
            "balance_before": before,
            "balance_after": user.credits,
            "metadata": call.metadata,
            "idempotency_key": key,
            "refund_of": None,
            "created_at": moment,
            "legs": list(legs),
            "revoke_of": None,
            "hold_id": None,
            "uncollected": 0,
            "written_at": None,
            **facts,
        }
        user.seq, user.updated_at = user.seq + 1, moment
        self.books.transactions.append(row)
        told = {"amount": row["amount"], "balanceBefore": before, "balanceAfter": user.credits}
        self.audit(call, at, {**told, **details})
        return row

    def audit(self, call: Call, at: tuple[datetime, int], details: Facts) -> None:
        """Note a success in the audit log."""
        if self.configuration.audits:
            self.books.audits.append(
                {
                    "number": at[1],
                    "user_id": call.user_id,
                    "operation": call.operation,
                    "action": call.action,
                    "status": "success",
                    "details": details,
                    "metadata": call.metadata,
                    "created_at": at[0],
                }
            )

    # Calls on holds

    def of_hold(self, call: Call, user: User, at: tuple[datetime, int]) -> Done:
        """Make a call on a hold that was placed before."""
        hold = self.books.hold(call.subject or "")
        if hold is None or hold.user_id != call.user_id:
            raise Refused("HoldNotFoundError", hold_id=call.subject)
        if call.method == "capture_hold":
            return self._capture(call, user, hold, at)
        if call.method == "release_hold" and hold.status == "released":
            return Done("Hold", shown_hold(hold))
        if hold.status != "active":
            raise Refused("HoldClosedError", hold_id=hold.hold_id, status=hold.status)
        if call.method == "release_hold":
            released = hold.held
            user.holds.remove(hold)
            hold.status, hold.pins = "released", []
            self._end_lots(call.user_id, at[0], at[0])
            self.audit(call, at, {"holdId": hold.hold_id, "released": released})
            return Done("Hold", shown_hold(hold))
        return self._extend(call, user, hold, at)

    def place(self, call: Call, user: User, at: tuple[datetime, int]) -> Done:
        """Place a hold."""
        arguments, (moment, number) = call.arguments, at
        tier = self.tariff.tier_in_force(user, moment)
        self.tariff.check_access(call.user_id, call.action, tier)
        amount = arguments.get("amount")
        if amount is None:
            given = arguments.get("variables")
            amount, _ = self.tariff.cost(call.user_id, call.action, tier, given)
        refuse_lack(user, call.user_id, amount)
        price = self.tariff.price_of(call.action, tier)
        hold = Held(
            number,
            call.user_id,
            call.action,
            amount,
            moment + timedelta(seconds=arguments["ttl"]),
            arguments["on_timeout"] == "settle",
            arguments["overage"],
            price,
            self._shown(price),
            moment,
            call.metadata,
            user.find(amount),
        )
        user.holds.append(hold)
        self.books.holds.append(hold)
        details = {"holdId": ANY, "amount": amount, "tier": tier, "expiresAt": hold.ends}
        self.audit(call, at, details)
        return Done("Hold", {**shown_hold(hold), "hold_id": ANY})

    def _shown(self, price: Price | None) -> int | str | None:
        if price is None or not price.is_fixed:
            return None if price is None else str(price.written)
        return to_units(price.means({}), self.configuration.decimal_places)

    def _extend(self, call: Call, user: User, hold: Held, at: tuple[datetime, int]) -> Done:
        arguments, moment = call.arguments, at[0]
        used, ttl, amount = (arguments.get(name) for name in ("used", "ttl", "amount"))
        if used is not None and used < hold.used:
            reason = f"is less than the {hold.used} reported before"
            raise Refused("InvalidRequestError", field="used", reason=reason)
        if amount is not None:
            if amount < hold.captured:
                reason = f"is less than the {hold.captured} captured before"
                raise Refused("InvalidRequestError", field="amount", reason=reason)
            more = amount - hold.captured - hold.held
            refuse_lack(user, call.user_id, more)
            if more >= 0:
                hold.pins = _added(hold.pins, user.find(more))
            else:
                hold.pins = _first(hold.pins, hold.held + more)
            hold.amount = amount
        hold.used = hold.used if used is None else used
        if ttl is not None:
            hold.ends = max(hold.ends, moment + timedelta(seconds=ttl))
        self._end_lots(call.user_id, moment, moment)
        if amount is not None or call.metadata is not None:
            # A heartbeat has neither, and leaves nothing.
            told = {"holdId": hold.hold_id, "amount": hold.amount, "expiresAt": hold.ends}
            self.audit(call, at, told)
        return Done("Hold", shown_hold(hold))

    def _capture(self, call: Call, user: User, hold: Held, at: tuple[datetime, int]) -> Done:
        total, how = self._total(call, hold)
        is_late = hold.status == "expired" and at[0] <= hold.ends + LATE
        if (hold.status == "active" or is_late) and total < hold.claimed:
            reason = f"is a total, and less than the {hold.claimed} captured before"
            raise Refused("InvalidRequestError", field="amount", reason=reason)
        if hold.status == "active":
            return self._capture_in_time(call, hold, at, (total, how))
        if is_late:
            if hold.overage == "reject" and total > hold.amount:
                raise self._exceeded(hold, hold.amount, total)
            before, wanted = user.credits, total - hold.claimed
            overage = "available" if hold.overage == "reject" else hold.overage
            taken, legs = user.take_beyond(overage, wanted)
            hold.captured += taken
            hold.uncollected += wanted - taken
            hold.used = max(hold.used, total)
            how = {"late": True, **how}
            return self._captured(call, hold, at, (before, legs, wanted - taken), how)
        if hold.status == "captured" and total == hold.claimed:
            return self._captured(call, hold, at, (user.credits, [], 0), None)
        raise Refused("HoldClosedError", hold_id=hold.hold_id, status=hold.status)

    def _total(self, call: Call, hold: Held) -> tuple[int, Facts]:
        given = call.arguments.get("variables")
        if given is None:
            amount = call.arguments.get("amount")
            return (hold.amount if amount is None else amount), {}
        if hold.price is None:
            raise Refused("UndefinedActionError", action=hold.action)
        if hold.price.is_fixed:
            # In the units of that time, which no configuration changes.
            return int(hold.shown_price or 0), {}
        return self.tariff.cost_at(hold.price, given)

    def _capture_in_time(
        self,
        call: Call,
        hold: Held,
        at: tuple[datetime, int],
        priced: tuple[int, Facts],
    ) -> Done:
        user, (total, how) = self.books.users[call.user_id], priced
        if hold.overage == "reject" and total > hold.claimed + hold.held:
            raise self._exceeded(hold, hold.claimed + hold.held, total)
        before, uncollected = user.credits, hold.uncollected
        _, legs = user.take_for(hold, total)
        if call.arguments["final"]:
            user.holds.remove(hold)
            hold.status, hold.pins = "captured", []
        lack = hold.uncollected - uncollected
        done = self._captured(call, hold, at, (before, legs, lack), how)
        expired = self._end_lots(call.user_id, at[0], at[0])
        told = {"expired_amount": expired, "balance_after": user.credits}
        return replace(done, facts={**done.facts, **told})

    @staticmethod
    def _exceeded(hold: Held, held: int, total: int) -> Refused:
        return Refused("HoldExceededError", hold_id=hold.hold_id, held=held, requested=total)

    def _captured(
        self,
        call: Call,
        hold: Held,
        at: tuple[datetime, int],
        moved: tuple[int, Legs, int],
        how: Facts | None,
    ) -> Done:
        """Note a capture, and return its result. ``how`` is None if it changed nothing at all."""
        before, legs, lack = moved
        after = self.books.users[call.user_id].credits
        details = {"holdId": hold.hold_id, "uncollected": lack, **(how or {})}
        if before != after:
            named = replace(call, arguments={**call.arguments, "action": hold.action})
            self.note(named, before, at, details, legs=legs, hold_id=hold.hold_id, uncollected=lack)
        elif how is not None:
            self.audit(call, at, details)
        return Done(
            "CaptureResult",
            {
                "hold_id": hold.hold_id,
                "user_id": call.user_id,
                "action": hold.action,
                "cost": before - after,
                "captured": hold.captured,
                "uncollected": lack,
                "late": "late" in (how or {}),
                "balance_before": before,
                "balance_after": after,
                "created_at": at[0],
                "metadata": call.metadata,
                "expired_amount": 0,
            },
        )


def refuse_lack(user: User, user_id: str, units: int) -> None:
    """Refuse what is not available. What costs nothing is free in any debt."""
    if units > max(user.available, 0):
        raise Refused(
            "InsufficientCreditsError",
            user_id=user_id,
            required=units,
            available=user.available,
        )


def shown_hold(hold: Held) -> Facts:
    """Return a hold as callers see it."""
    return {
        "hold_id": hold.hold_id,
        "user_id": hold.user_id,
        "action": hold.action,
        "amount": hold.amount,
        "captured": hold.captured,
        "used": hold.used,
        "status": hold.status,
        "price": hold.shown_price,
        "expires_at": hold.ends,
        "created_at": hold.created_at,
        "metadata": hold.metadata,
    }


def shown_row(row: Facts) -> Facts:
    """Return a transaction as the history shows it."""
    return {**row, "legs": shown_legs(row["legs"])}


def _added(pins: Legs, more: Legs) -> Legs:
    """Return the pins with more behind them. A lot is pinned once; the base can be twice."""
    added = list(pins)
    for place, units in more:
        places = [where for where, _ in added]
        if place is not None and place in places:
            number = places.index(place)
        elif place is None and places[-1:] == [None]:
            number = len(places) - 1
        else:
            added.append((place, 0))
            number = len(places)
        added[number] = (place, added[number][1] + units)
    return added


def _first(pins: Legs, units: int) -> Legs:
    """Return the first units of the pins."""
    kept: list[tuple[Lot | None, int]] = []
    for place, there in pins:
        part = min(there, units)
        units -= part
        if part:
            kept.append((place, part))
    return kept
