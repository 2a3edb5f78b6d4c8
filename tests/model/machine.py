"""The state machine: one history of calls, reads, and changes of clock and configuration."""

from __future__ import annotations

import asyncio
import copy
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from credit_mongo import InvalidRequestError
from tests.model.books import Call, Facts, Refused
from tests.model.comparison import SideBySide, World, answer_of, assert_same, send
from tests.model.configurations import CONFIGURATIONS
from tests.model.plans import (
    ACTIONS,
    AT_ONCE,
    BAD_INPUT,
    CALL_USERS,
    METADATA,
    NUMBERS,
    USERS,
    Plan,
    Seconds,
    plans,
)

__all__ = ["LedgerMachine", "World"]


@dataclass
class Bookmark:
    """Where a page ended, and which rows it belongs to."""

    kind: str
    user: str
    cursor: str
    filters: Facts
    rest: list[Facts]
    last: Facts


class LedgerMachine(SideBySide):
    """Each rule does the same on the ledger and on the model, and compares the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.bookmarks: list[Bookmark] = []

    # Calls

    @initialize(
        name=st.sampled_from(list(CONFIGURATIONS)),
        opening=st.tuples(
            *[
                st.tuples(
                    st.sampled_from([units, 10**6, 0]),
                    st.sampled_from(["premium", None, "free", "enterprise"]),
                    st.sampled_from([None, 60, 1]),
                )
                for units in (3000, 60)
            ]
        ),
    )
    def begin(self, name: str, opening: tuple[tuple[int, str | None, int | None], ...]) -> None:
        """Choose a configuration, and create the first users."""
        self.configuration = CONFIGURATIONS[name]
        for user, (units, tier, seconds) in zip(USERS, opening, strict=False):
            # Without tiers, a user with one could not be created, and nothing would follow.
            known = tier if self.configuration.levels else None
            arguments = {"credits": units, "membership_tier": known}
            expires_at = None if seconds is None else Seconds(seconds)
            plan = {**arguments, "membership_expires_at": expires_at}
            self.make_call(self.resolve(Plan("create_user", user, tuple(plan.items()), None, 0)))

    @rule(plan=plans("charge"))
    def charge(self, plan: Plan) -> None:
        """Make a charge, the most frequent operation."""
        self.make_call(self.resolve(plan))

    @rule(plan=plans("place_hold", "place_hold", "grant"))
    def keep_apart(self, plan: Plan) -> None:
        """Place a hold or open a lot, so that what follows has something to work on."""
        self.make_call(self.resolve(plan))

    @rule(
        plan=plans(
            *("capture_hold", "capture_hold", "extend_hold", "release_hold"),
            *("refund", "refund", "revoke"),
        )
    )
    @precondition(lambda self: self.books.holds)
    def follow_up(self, plan: Plan) -> None:
        """Settle what calls before have begun."""
        self.make_call(self.resolve(plan))

    @rule(number=st.integers(0, 9), beyond=st.integers(1, 50))
    @precondition(lambda self: self.too_much(1))
    def ask_for_too_much(self, number: int, beyond: int) -> None:
        """Refund, revoke or capture more than there was."""
        calls = self.too_much(beyond)
        self.make_call(calls[number % len(calls)])

    def too_much(self, beyond: int) -> list[Call]:
        """Return calls on charges, grants and holds, each for more than these were."""
        calls = []
        for hold in self.books.holds:
            if hold.overage == "reject":
                arguments: Facts = {"amount": hold.amount + beyond, "final": True}
                calls.append(Call("capture_hold", hold.user_id, arguments, subject=hold.hold_id))
        for row in self.books.transactions:
            name, amount = row["transaction_id"], abs(row["amount"]) + beyond
            if name is None or amount > 2**53 - 1:
                continue
            arguments = {"amount": amount, "action": "support"}
            if row["operation"] == "charge":
                arguments = {**arguments, "transaction_id": name}
                calls.append(Call("refund", row["user_id"], arguments))
            elif row["operation"] == "grant":
                calls.append(Call("revoke", row["user_id"], arguments, subject=name))
        return calls

    @rule(plan=plans())
    def operate(self, plan: Plan) -> None:
        """Make any call that writes."""
        self.make_call(self.resolve(plan))

    @rule(back=st.integers(1, 5), metadata=st.integers(0, len(METADATA) - 1))
    @precondition(lambda self: self.calls)
    def repeat_call(self, back: int, metadata: int) -> None:
        """Repeat an earlier call, perhaps with other metadata."""
        earlier = self.calls[-min(back, len(self.calls))]
        # Of a hold that an application took back, the ledger may still know the user.
        if earlier.subject is not None and self.books.owner_of(earlier) is None:
            return
        self.make_call(replace(earlier, metadata=METADATA[metadata]))

    @rule(drawn=st.lists(plans(*AT_ONCE), min_size=2, max_size=7))
    def make_calls_at_once(self, drawn: list[Plan]) -> None:
        """Make several calls at once.

        A user's calls keep their order, and a key has one user here.
        """
        owners: dict[str | None, str] = {}
        calls = []
        for plan in drawn:
            is_owner = owners.setdefault(plan.key, plan.user) == plan.user
            calls.append(self.resolve(plan if is_owner else replace(plan, key=None)))

        async def call_all() -> list[Any]:
            work = [send(self.ledger, call) for call in calls]
            return await asyncio.gather(*work, return_exceptions=True)

        answers = self.world.run(call_all())
        for call, answer in zip(calls, answers, strict=True):
            self.compare_answer(call, answer)

    @rule(drawn=st.lists(plans(), min_size=1, max_size=4), commits=st.booleans())
    def in_a_transaction(self, drawn: list[Plan], commits: bool) -> None:
        """Make several calls in an application's transaction, which then commits or aborts."""
        before = copy.deepcopy(self.books)

        async def use_session() -> None:
            async with self.world.client.start_session() as session:
                await session.start_transaction()
                for plan in drawn:
                    call = self.resolve(plan)
                    answer = await answer_of(send(self.ledger, call, session=session))
                    self.compare_answer(call, answer, in_session=True)
                    await self.compare_user(call.user_id, session)
                await (session.commit_transaction() if commits else session.abort_transaction())

        self.world.run(use_session())
        if not commits:
            # Refused attempts stay in the audit log.
            refused = [row for row in self.books.audits if row["status"] == "failed"]
            known = {row["number"] for row in before.audits}
            before.audits += [row for row in refused if row["number"] not in known]
            self.books = before

    @rule(case=st.sampled_from(BAD_INPUT), user=st.sampled_from(USERS))
    def bad_input(self, case: tuple[str, str, Facts], user: str) -> None:
        """Make a wrong call. The comparison of everything shows that it wrote nothing."""
        wrong_field, method, arguments = case
        call = {"user_id": self.prefix + user, **arguments}
        error = self.world.run(answer_of(getattr(self.ledger, method)(**call)))
        assert isinstance(error, InvalidRequestError), error
        assert (error.code, error.field) == ("INVALID_REQUEST", wrong_field)

    # Changes of clock and configuration

    @rule(
        seconds=st.sampled_from(
            [0.001, 0.0004, 1, 59, 60, 61, 3600, 86_400 * 31, -0.001, -1, -3600, -86_400 * 40]
        )
    )
    def move_clock(self, seconds: float) -> None:
        """Move the clock forward, even past the life of keys, or back."""
        self.world.now += timedelta(seconds=seconds)

    @rule(plan=plans(), seconds=st.sampled_from([1, 61, 3601, 86_400 * 31, -1, -61]))
    def on_another_clock(self, plan: Plan, seconds: float) -> None:
        """Let a process whose clock is ahead or behind make a call."""
        self.world.now += timedelta(seconds=seconds)
        call = self.resolve(plan)
        self.make_call(call)
        self.world.now -= timedelta(seconds=seconds)
        self.world.run(self.compare_quote(call.user_id, "generate-post", None))

    @rule(number=st.integers(0, len(CONFIGURATIONS) - 1))
    def change_configuration(self, number: int) -> None:
        """Start another version of the application. The decimal places stay."""
        places = self.configuration.decimal_places
        alike = [each for each in CONFIGURATIONS.values() if each.decimal_places == places]
        self.configuration = alike[number % len(alike)]

    # Reads

    @rule(user=st.sampled_from(CALL_USERS), action=st.sampled_from(ACTIONS), n=st.none() | NUMBERS)
    def quote(self, user: str, action: str, n: Any) -> None:
        """Compare a quote, and whether the user has access."""
        given = None if n is None else dict.fromkeys(("token", "words", "n", "used"), n)
        self.world.run(self.compare_quote(self.prefix + user, action, given))

    @rule(
        user=st.sampled_from(CALL_USERS),
        kind=st.sampled_from(["history", "audit_log"]),
        limit=st.integers(1, 4),
        offset=st.integers(0, 2),
        chosen=st.tuples(
            st.sampled_from(["all", "action", "status", "since", "until"]), st.integers(0, 3)
        ),
    )
    def read_page(
        self, user: str, kind: str, limit: int, offset: int, chosen: tuple[str, int]
    ) -> None:
        """Read a first page, and remember where it ended."""
        user_id = self.prefix + user
        rows = self.world.run(self.rows(kind, user_id))
        filters = self.filters(kind, *chosen, rows)
        if kind == "history" and user_id not in self.books.users:
            answer = self.world.run(answer_of(self.ledger.get_history(user_id, **filters)))
            assert_same(Refused("UserNotFoundError", user_id=user_id), answer)
            return
        rows = [row for row in rows if fits(row, filters)][offset:]
        self.turn_page(kind, user_id, filters, rows, limit, offset=offset)

    @rule(limit=st.integers(1, 4))
    @precondition(lambda self: self.bookmarks)
    def next_page(self, limit: int) -> None:
        """Read the next page: it continues where the last one ended, whatever was written since."""
        mark = self.bookmarks.pop()
        rest = mark.rest
        if mark.kind == "audit_log":
            # After the clock went back, an unknown user's attempt can be older than rows already
            # read. So can what time leads to: it is dated when it was due.
            rows = self.world.run(self.rows(mark.kind, mark.user))
            rest = [row for row in rows[rows.index(mark.last) + 1 :] if fits(row, mark.filters)]
        self.turn_page(mark.kind, mark.user, mark.filters, rest, limit, cursor=mark.cursor)

    def turn_page(
        self, kind: str, user_id: str, filters: Facts, rows: list[Facts], limit: int, **place: Any
    ) -> None:
        """Compare a page with the model's next rows."""
        read = getattr(self.ledger, f"get_{kind}")
        page = self.world.run(read(user_id, limit=limit, **filters, **place))
        self.compare_rows(kind, rows[:limit], page)
        assert (page.next_cursor is not None) == (len(rows) > limit)
        if page.next_cursor is not None:
            rest = rows[limit:]
            last = rows[limit - 1]
            self.bookmarks.append(Bookmark(kind, user_id, page.next_cursor, filters, rest, last))

    async def rows(self, kind: str, user_id: str) -> list[Facts]:
        """Return the model's rows, newest first."""
        return self.books.chain(user_id) if kind == "history" else await self.audit_log(user_id)

    def filters(self, kind: str, choice: str, value: int, rows: list[Facts]) -> Facts:
        """Draw a filter that some of these rows may pass."""
        if choice == "status" and kind == "audit_log":
            return {"status": ("success", "failed")[value % 2]}
        if not rows or choice in ("all", "status"):
            return {}
        row = rows[value % len(rows)]
        if choice == "action":
            return {"action": row["action"]}
        return {"start_date" if choice == "since" else "end_date": row["created_at"]}

    @rule()
    def compare_everything(self) -> None:
        """Compare all users, their histories and audit logs, and every key."""
        self.world.run(self.compare_all())

    def teardown(self) -> None:
        """Unless the history has failed, compare everything and repeat each key."""
        if sys.exc_info()[0] is not None:
            return
        self.world.run(self.compare_all())
        for key, known in list(self.books.keys.items()):
            call = next(
                (c for c in reversed(self.calls) if c.key == key and c.effect == known.effect), None
            )
            assert call is not None, "the model remembers a call that nobody made"
            self.make_call(call)
        self.world.run(self.compare_all())
        event(f"transactions: {len(self.books.transactions) // 5 * 5} or more")
        super().teardown()


def fits(row: Facts, filters: Facts) -> bool:
    """Whether a row passes a filter."""
    return (
        row["action"] == filters.get("action", row["action"])
        and row.get("status") == filters.get("status", row.get("status"))
        and ("start_date" not in filters or row["created_at"] >= filters["start_date"])
        and ("end_date" not in filters or row["created_at"] < filters["end_date"])
    )
