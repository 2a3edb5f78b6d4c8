"""The state machine: one history of calls, reads and changes of the world around."""

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
from tests.model.books import Facts, Refused
from tests.model.comparison import SideBySide, World, answer_of, assert_same, send
from tests.model.configurations import CONFIGURATIONS
from tests.model.plans import (
    ACTIONS,
    ASKED,
    BAD_INPUT,
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
    """Where a page ended, and what it was a page of."""

    kind: str
    user: str
    cursor: str
    filters: Facts
    rest: list[Facts]


class LedgerMachine(SideBySide):
    """Every rule asks the ledger and the model the same, and compares what they say."""

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
        """A configuration and the first users."""
        self.configuration = CONFIGURATIONS[name]
        for user, (units, tier, seconds) in zip(USERS, opening, strict=False):
            arguments = {"credits": units, "membership_tier": tier}
            expires_at = None if seconds is None else Seconds(seconds)
            plan = {**arguments, "membership_expires_at": expires_at}
            self.ask(self.resolve(Plan("create_user", user, tuple(plan.items()), None, 0)))

    @rule(plan=plans("charge"))
    def charge(self, plan: Plan) -> None:
        """The operation that happens most."""
        self.ask(self.resolve(plan))

    @rule(plan=plans())
    def operate(self, plan: Plan) -> None:
        """Any operation."""
        self.ask(self.resolve(plan))

    @rule(back=st.integers(1, 5), metadata=st.integers(0, len(METADATA) - 1))
    @precondition(lambda self: self.calls)
    def again(self, back: int, metadata: int) -> None:
        """An earlier call once more, perhaps with other metadata."""
        earlier = self.calls[-min(back, len(self.calls))]
        self.ask(replace(earlier, metadata=METADATA[metadata]))

    @rule(drawn=st.lists(plans(), min_size=2, max_size=7))
    def together(self, drawn: list[Plan]) -> None:
        """Several at once. Of one user they keep their order; a key is one user's here."""
        owners: dict[str | None, str] = {}
        calls = []
        for plan in drawn:
            is_owner = owners.setdefault(plan.key, plan.user) == plan.user
            calls.append(self.resolve(plan if is_owner else replace(plan, key=None)))

        async def ask_all() -> list[Any]:
            work = [send(self.ledger, call) for call in calls]
            return await asyncio.gather(*work, return_exceptions=True)

        answers = self.world.run(ask_all())
        for call, answer in zip(calls, answers, strict=True):
            self.compare_answer(call, answer)

    @rule(drawn=st.lists(plans(), min_size=1, max_size=4), commits=st.booleans())
    def in_a_transaction(self, drawn: list[Plan], commits: bool) -> None:
        """Several in a transaction of the application's, which commits or aborts it."""
        before = copy.deepcopy(self.books)

        async def use_session() -> None:
            async with self.world.client.start_session() as session:
                await session.start_transaction()
                for plan in drawn:
                    call = self.resolve(plan)
                    answer = await answer_of(send(self.ledger, call, session=session))
                    self.compare_answer(call, answer)
                    await self.compare_user(call.user_id, session)
                await (session.commit_transaction() if commits else session.abort_transaction())

        self.world.run(use_session())
        if not commits:
            # The attempts that were refused stay.
            refused = [row for row in self.books.audits if row["status"] == "failed"]
            known = {row["number"] for row in before.audits}
            before.audits += [row for row in refused if row["number"] not in known]
            self.books = before

    @rule(case=st.sampled_from(BAD_INPUT), user=st.sampled_from(USERS))
    def bad_input(self, case: tuple[str, str, Facts], user: str) -> None:
        """Refused by its field; that nothing was written is seen when all is compared."""
        wrong_field, method, arguments = case
        call = {"user_id": self.prefix + user, **arguments}
        error = self.world.run(answer_of(getattr(self.ledger, method)(**call)))
        assert isinstance(error, InvalidRequestError), error
        assert (error.code, error.field) == ("INVALID_REQUEST", wrong_field)

    # The world around

    @rule(
        seconds=st.sampled_from(
            [0.001, 0.0004, 1, 59, 60, 61, 3600, 86_400 * 31, -0.001, -1, -3600, -86_400 * 40]
        )
    )
    def move_clock(self, seconds: float) -> None:
        """Forward, past the time that keys are remembered, and back."""
        self.world.now += timedelta(seconds=seconds)

    @rule(plan=plans(), seconds=st.sampled_from([1, 61, 3601, 86_400 * 31, -1, -61]))
    def on_another_clock(self, plan: Plan, seconds: float) -> None:
        """A process whose clock is ahead or behind does something meanwhile."""
        self.world.now += timedelta(seconds=seconds)
        call = self.resolve(plan)
        self.ask(call)
        self.world.now -= timedelta(seconds=seconds)
        self.world.run(self.compare_quote(call.user_id, "generate-post", None))

    @rule(number=st.integers(0, len(CONFIGURATIONS) - 1))
    def change_configuration(self, number: int) -> None:
        """Another version of the application starts: the decimal places stay."""
        places = self.configuration.decimal_places
        alike = [each for each in CONFIGURATIONS.values() if each.decimal_places == places]
        self.configuration = alike[number % len(alike)]

    # Reads

    @rule(user=st.sampled_from(ASKED), action=st.sampled_from(ACTIONS), n=st.none() | NUMBERS)
    def quote(self, user: str, action: str, n: Any) -> None:
        """What a charge would cost, and whether it may be done at all."""
        given = None if n is None else dict.fromkeys(("token", "words", "n", "used"), n)
        self.world.run(self.compare_quote(self.prefix + user, action, given))

    @rule(
        user=st.sampled_from(ASKED),
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
        """A first page, and where it ended."""
        user_id = self.prefix + user
        rows = self.rows(kind, user_id)
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
        """The page after, exactly where it ended, whatever was written since."""
        mark = self.bookmarks.pop()
        # A clock that went back can date an attempt on nobody before those that were read.
        if mark.kind == "audit_log" and mark.user not in self.books.users:
            return
        self.turn_page(mark.kind, mark.user, mark.filters, mark.rest, limit, cursor=mark.cursor)

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
            self.bookmarks.append(Bookmark(kind, user_id, page.next_cursor, filters, rest))

    def rows(self, kind: str, user_id: str) -> list[Facts]:
        """The model's rows, newest first."""
        return (self.books.chain if kind == "history" else self.books.audit_log)(user_id)

    def filters(self, kind: str, choice: str, value: int, rows: list[Facts]) -> Facts:
        """A filter that some of these rows may pass."""
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
        """All users, their histories and audit logs, and every key."""
        self.world.run(self.compare_all())

    def teardown(self) -> None:
        """The same, and each key asked once more; unless the history has failed already."""
        if sys.exc_info()[0] is not None:
            return
        self.world.run(self.compare_all())
        for key, known in list(self.books.keys.items()):
            call = next(
                (c for c in reversed(self.calls) if c.key == key and c.effect == known.effect), None
            )
            assert call is not None, "the model remembers what nobody asked for"
            self.ask(call)
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
