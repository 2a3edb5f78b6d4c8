"""The check: what callers were told must match what the database holds.

``violations`` takes the calls of a round and the stored rows. It uses no code of the library.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, TypeAlias

from tests.soak.journal import NEVER, Call
from tests.soak.tariff import CAPS, TIERS, has_parts, price

__all__ = ["violations"]

Row: TypeAlias = dict[str, Any]

_CHANGES_TIER: Final = ("upgrade_tier", "downgrade_tier", "renew_tier")
# No user is ever removed, and every refund names an acknowledged charge.
_IMPOSSIBLE: Final = (
    *("TRANSACTION_NOT_FOUND", "HOLD_NOT_FOUND", "UNDEFINED_ACTION", "INVALID_REQUEST"),
)
_STORED_AS: Final = {"capture_hold": "capture"}


def violations(
    calls: Mapping[str, Call],
    transactions: Sequence[Row],
    audit_logs: Sequence[Row],
    holds: Sequence[Row] = (),
) -> list[str]:
    """Return every contradiction between calls and rows: none if all is well."""
    check = _Check(calls, transactions, audit_logs)
    return [
        *check.rows_were_requested(),
        *check.answers_match_the_rows(),
        *check.refusals_left_nothing(),
        *check.refusals_are_audited(),
        *check.effects_are_right(),
        *check.order_follows_time(),
        *check.holds_were_requested(holds),
        *check.holds_are_as_told(holds),
    ]


class _Check:
    def __init__(
        self, calls: Mapping[str, Call], transactions: Sequence[Row], audit_logs: Sequence[Row]
    ) -> None:
        self.calls = calls
        self.by_id = {str(row["_id"]): row for row in transactions}
        self.by_key = {
            row["idempotencyKey"]: row for row in transactions if row["idempotencyKey"] is not None
        }
        self.audit_logs = audit_logs
        self.effects: dict[str, list[Row]] = defaultdict(list)
        self.chains: dict[str, list[Row]] = defaultdict(list)
        for row in transactions:
            # What time led to, nobody has requested.
            if row.get("writtenAt") is None:
                self.effects[_call_id(row)].append(row)
            self.chains[row["userId"]].append(row)
        for chain in self.chains.values():
            chain.sort(key=lambda row: int(row["seq"]))
        # When each row was first known to exist: when the first answer that names it arrived.
        self.known_at: dict[str, int] = {}
        for call in calls.values():
            told_of = self._row_of(call)
            if told_of is not None:
                row_id = str(told_of["_id"])
                self.known_at[row_id] = min(call.ended, self.known_at.get(row_id, call.ended))

    def _row_of(self, call: Call) -> Row | None:
        """Return the row that a result describes."""
        if not call.request.is_write or call.outcome != "done":
            return None
        if "transaction_id" in call.facts:
            return self.by_id.get(call.facts["transaction_id"])
        chain = self.chains.get(call.request.user_id, [])
        return chain[0] if chain and chain[0]["operation"] == "create_user" else None

    def rows_were_requested(self) -> Iterator[str]:
        """Each row has a call that requested it, and no call has two rows."""
        for call_id, rows in self.effects.items():
            call = self.calls.get(call_id)
            if call is None:
                yield f"no call requested {rows[0]}"
                continue
            if len(rows) > 1:
                yield f"{call} has {len(rows)} effects"
            if call.outcome in ("refused", "failed"):
                yield f"{call} has an effect: {rows[0]}"
            request = call.request
            requested = (
                _STORED_AS.get(request.operation, request.operation),
                request.user_id,
                request.key,
                # Holds are placed for posts alone.
                "post"
                if request.operation == "capture_hold"
                else request.arguments.get("action", request.operation),
            )
            row = rows[0]
            stored = (row["operation"], row["userId"], row["idempotencyKey"], row["action"])
            if requested != stored:
                yield f"{call} made {row}"

    def answers_match_the_rows(self) -> Iterator[str]:
        """Each result matches its row, which the same request made."""
        for call in self.calls.values():
            if call.outcome != "done":
                continue
            if not call.request.is_write:
                yield from self._check_reading(call)
                continue
            if _moved_nothing(call):
                continue
            row = self._row_of(call)
            if row is None:
                yield f"lost: {call}"
                continue
            made_by = self.calls.get(_call_id(row))
            if made_by is not None and made_by.request != call.request:
                yield f"{call} was told the result of {made_by}"
            if call.facts["replayed"] != (_call_id(row) != call.call_id):
                yield f"{call} was wrongly told whose result it is: {row}"
            if not _tells_of(call, row):
                yield f"{call} was told something else than {row}"

    def _check_reading(self, call: Call) -> Iterator[str]:
        if has_parts(call.request.user_id):
            return  # It shows the ends that nobody has written yet.
        chain = self.chains.get(call.request.user_id, [])
        if call.request.operation == "get_balance":
            if all(row["balanceAfter"] != call.facts["credits"] for row in chain):
                yield f"there was no such balance: {call}"
            return
        seq = call.facts["seq"]
        if not 1 <= seq <= len(chain) or chain[seq - 1]["balanceAfter"] != call.facts["credits"]:
            yield f"there was no such user: {call}"
        elif self._began(chain[seq - 1]) > call.ended:
            yield f"the balance was read before any call could have made it: {call}"

    def refusals_left_nothing(self) -> Iterator[str]:
        """A refusal is final for its key, unless a later call requests the same."""
        for call in self.calls.values():
            if call.outcome != "refused":
                continue
            code = call.facts["code"]
            if code in _IMPOSSIBLE and not _is_refused_late(call):
                yield f"wrongly refused: {call}"
            if code == "USER_NOT_FOUND" and call.request.user_id != "nobody":
                yield f"a lost user: {call}"
            row = self.by_key.get(call.request.key)
            if row is None:
                continue
            known_at = self.known_at.get(str(row["_id"]))
            same = (
                self.calls[_call_id(row)].request == call.request
                if _call_id(row) in self.calls
                else 0
            )
            if same and code == "IDEMPOTENCY_KEY_CONFLICT":
                yield f"the same request met a conflict: {call}"
            if same and known_at is not None and known_at < call.began:
                yield f"refused, though it had been done: {call}"

    def refusals_are_audited(self) -> Iterator[str]:
        """Each refusal has its audit row, and no other audit row is a refusal."""
        failed: dict[str, list[Row]] = defaultdict(list)
        for row in self.audit_logs:
            if row["status"] == "failed":
                failed[_call_id(row)].append(row)
        for call_id, rows in failed.items():
            call = self.calls.get(call_id)
            if call is None or len(rows) > 1 or call.outcome in ("done", "failed"):
                yield f"{call} has the audit rows {rows}"
            elif call.outcome == "refused" and rows[0]["details"]["code"] != call.facts["code"]:
                yield f"{call} is audited as {rows[0]}"
        for call in self.calls.values():
            is_audited = call.request.is_write and not _is_refused_late(call)
            if call.outcome == "refused" and is_audited and call.call_id not in failed:
                yield f"not audited: {call}"

    def effects_are_right(self) -> Iterator[str]:
        """Each row has the amount that its call requested, at the user's tier at that time."""
        tiers_of = {
            str(row["_id"]): row["details"] for row in self.audit_logs if row["status"] == "success"
        }
        for chain in self.chains.values():
            tier: str | None = None
            for row in chain:
                call = self.calls.get(_call_id(row))
                if call is None:
                    continue
                details = tiers_of.get(str(row["_id"]), {})
                if row["operation"] in _CHANGES_TIER:
                    right = details.get("oldTier") == tier
                    tier = details.get("newTier")
                    right = right and _is_right_change(call, row, details)
                else:
                    if row["operation"] == "create_user":
                        tier = call.request.arguments["membership_tier"]
                    # How much these take depends on what was there.
                    limited = row["operation"] in ("capture", "revoke")
                    amount = _amount(call, tier)
                    right = row["amount"] == amount
                    if limited and amount is not None:
                        right = 0 <= -row["amount"] <= amount
                if not right:
                    yield f"{call} at {tier} made {row} with {details}"

    def order_follows_time(self) -> Iterator[str]:
        """A row acknowledged before another call began has the smaller ``seq``."""
        refused: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls.values():
            if call.outcome == "refused" and call.facts["code"] == "INSUFFICIENT_CREDITS":
                refused[call.request.user_id].append(call)
        for user_id, chain in self.chains.items():
            if has_parts(user_id):
                # What is available there depends on holds, too.
                refused.pop(user_id, None)
            began = [self._began(row) for row in chain]
            known = [self.known_at.get(str(row["_id"]), NEVER) for row in chain]
            latest = list(accumulate(began, max))
            for number in range(1, len(chain)):
                if known[number] < latest[number - 1]:
                    yield f"out of order: {chain[number]}"
            # The earliest and the latest time at which each state can have existed.
            over = [*list(accumulate(reversed(known), min))[-2::-1], NEVER]
            for call in refused[user_id]:
                first, last = bisect_left(over, call.began), bisect_right(latest, call.ended)
                available = call.facts["available"]
                if not any(row["balanceAfter"] == available for row in chain[first:last]):
                    yield f"there was no such balance at that time: {call}"

    def holds_were_requested(self, holds: Sequence[Row]) -> Iterator[str]:
        """Each hold was placed by one request."""
        placed: dict[str, int] = defaultdict(int)
        for row in holds:
            call = self.calls.get(_call_id(row))
            placed[_call_id(row)] += 1
            if call is None or call.outcome in ("refused", "failed"):
                yield f"{call} has a hold: {row}"
            elif (call.request.operation, call.request.user_id) != ("place_hold", row["userId"]):
                yield f"{call} made the hold {row}"
        for call_id, count in placed.items():
            if count > 1:
                yield f"{self.calls.get(call_id)} has {count} holds"

    def holds_are_as_told(self, holds: Sequence[Row]) -> Iterator[str]:
        """Each hold is as its callers were told."""
        by_id = {str(row["_id"]): row for row in holds}
        for call in self.calls.values():
            if call.outcome != "done" or "hold_id" not in call.facts:
                continue
            hold = by_id.get(call.facts["hold_id"])
            if hold is None or hold["userId"] != call.request.user_id:
                yield f"a lost hold: {call}"
                continue
            if call.facts["captured"] > hold["captured"]:
                yield f"{call} was told of more than was captured: {hold}"
            if call.request.operation == "release_hold" and hold["status"] != "released":
                yield f"{call} released {hold}"
            ends_it = call.request.operation == "capture_hold" and call.request.arguments["final"]
            if ends_it and hold["status"] not in ("captured", "expired"):
                yield f"{call} settled {hold}"

    def _began(self, row: Row) -> int:
        call = self.calls.get(_call_id(row))
        return call.began if call is not None else 0


def _moved_nothing(call: Call) -> bool:
    """Whether a call on a hold succeeded without a transaction."""
    return "hold_id" in call.facts and call.facts.get("transaction_id") is None


def _is_refused_late(call: Call) -> bool:
    """Whether time, or other captures, can make a call with these arguments invalid."""
    is_timed = call.request.operation in ("capture_hold", "extend_hold") or (
        call.request.arguments.get("expires_at") is not None
    )
    return is_timed and call.facts.get("code") == "INVALID_REQUEST"


def _call_id(row: Row) -> str:
    return str((row["metadata"] or {}).get("call"))


def _tells_of(call: Call, row: Row) -> bool:
    facts = call.facts
    if row["operation"] != _STORED_AS.get(call.request.operation, call.request.operation):
        return False
    stored = (row["balanceBefore"], row["balanceAfter"], int(row["createdAt"].timestamp() * 1000))
    if row["operation"] == "create_user":
        told = (0, facts["credits"], facts["created_at"])
        return told == stored and facts["seq"] == row["seq"] == 1
    if row["operation"] in _CHANGES_TIER:
        told = (facts["old_credits"], facts["new_credits"], facts["created_at"])
        return told == stored and facts["credits_delta"] == row["amount"]
    if row["operation"] == "set_overdraft":
        told = (facts["balance"], facts["balance"], facts["created_at"])
        return told == stored and facts["new_limit"] == row["newOverdraft"]
    # What went back to a lot that had ended has a row of its own.
    after = facts["balance_after"] + facts.get("expired_amount", 0)
    told = (facts["balance_before"], after, facts["created_at"])
    amount = -facts["cost"] if "cost" in facts else facts["amount"]
    if row["operation"] == "revoke":
        amount = -amount
    same_charge = str(row.get("refundOf")) == str(call.request.arguments.get("transaction_id"))
    return (
        told == stored
        and amount == row["amount"]
        and same_charge
        and facts["action"] == row["action"]
        and facts["metadata"] == row["metadata"]
    )


def _amount(call: Call, tier: str | None) -> int | None:
    arguments = call.request.arguments
    if call.request.operation == "create_user":
        return int(arguments["credits"])
    if call.request.operation == "set_overdraft":
        return 0
    if call.request.operation != "charge":
        return int(arguments["amount"])
    cost = arguments.get("amount")
    if cost is None:
        cost = price(arguments["action"], tier, arguments.get("variables", {}).get("n"))
    return None if cost is None else -cost


def _is_right_change(call: Call, row: Row, details: Row) -> bool:
    old_tier, new_tier = details.get("oldTier"), details.get("newTier")
    if new_tier not in TIERS:
        return False
    arguments = call.request.arguments
    balance = CAPS[new_tier] if arguments.get("refill", True) else row["balanceBefore"]
    # Lots come on top of the cap, and a debt is taken off it.
    if row["balanceAfter"] != balance and not has_parts(row["userId"]):
        return False
    if call.request.operation == "renew_tier":
        return bool(new_tier == old_tier)
    old_level = -1 if old_tier is None else TIERS.index(old_tier)
    goes_up = TIERS.index(new_tier) > old_level
    is_upgrade = call.request.operation == "upgrade_tier"
    return bool(new_tier == arguments["target_tier"] and goes_up == is_upgrade)
