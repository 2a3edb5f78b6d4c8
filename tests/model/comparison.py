"""The ledger and the model side by side: both get the same calls, and their answers must agree."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar, TypeVar

from hypothesis.stateful import RuleBasedStateMachine
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo import CreditError, CreditLedger
from tests.model.books import Books, Call, Done, Facts, Refused, Tariff, User, milliseconds
from tests.model.configurations import CONFIGURATIONS
from tests.model.hold_rules import shown_hold
from tests.model.parts import shown_legs
from tests.model.plans import (
    METADATA,
    NO_SUCH_ID,
    USERS,
    ChargeNumber,
    GrantNumber,
    HoldNumber,
    Plan,
    Seconds,
)
from tests.model.rules import Operations, user_facts

__all__ = ["SideBySide", "World", "answer_of", "assert_same", "send"]

_T = TypeVar("_T")

# Ahead of the server's clock, so that the server's sweep removes no key of the test.
BEGINNING = datetime(2060, 2, 28, 23, 59, 59, 999_000, tzinfo=timezone.utc)


@dataclass
class World:
    """What all histories share: databases, a ledger for each configuration, a clock, a loop.

    Configurations with the same number of decimal places share a database.
    """

    loop: asyncio.AbstractEventLoop
    client: AsyncMongoClient[dict[str, Any]]
    databases: Mapping[int, AsyncDatabase[dict[str, Any]]]
    ledgers: dict[str, CreditLedger] = field(default_factory=dict)
    now: datetime = BEGINNING
    histories: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    async def open(self) -> None:
        """Open the ledgers."""
        for name, configuration in CONFIGURATIONS.items():
            self.ledgers[name] = CreditLedger(
                self.databases[configuration.decimal_places],
                configuration.for_the_library(),
                clock=lambda: self.now,
            )
        for name in ("whole", "cents"):
            await self.ledgers[name].ensure_indexes()

    def run(self, work: Awaitable[_T]) -> _T:
        """Wait for the work."""

        async def wait() -> _T:
            return await work

        return self.loop.run_until_complete(wait())


class SideBySide(RuleBasedStateMachine):
    """One history so far, on the ledger and on the model."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.histories += 1
        self.world.now = BEGINNING
        self.prefix = f"{self.world.histories}:"
        self.books = Books()
        self.configuration = CONFIGURATIONS["whole"]
        self.calls: list[Call] = []
        self.transaction_ids: list[str] = []
        self.texts: dict[int, str] = {}
        self.answers: dict[int, Any] = {}

    @property
    def ledger(self) -> CreditLedger:
        """The ledger with the current configuration."""
        return self.world.ledgers[self.configuration.name]

    @property
    def model(self) -> Operations:
        """The model with the current configuration."""
        return Operations(self.books, self.configuration)

    @property
    def moment(self) -> datetime:
        """The clock's time as the ledger stores it."""
        return milliseconds(self.world.now)

    def resolve(self, plan: Plan) -> Call:
        """Turn a plan into a call, with this history's names and the current time."""
        user_id = self.prefix + plan.user
        arguments = {name: self.resolved(value, user_id) for name, value in plan.arguments}
        key = None if plan.key is None else self.prefix + plan.key
        subject = arguments.pop("subject", None)
        call = Call(plan.method, user_id, arguments, key, METADATA[plan.metadata], subject)
        owner = None if subject is None else self.books.owner_of(call)
        return call if owner is None else replace(call, user_id=owner)

    def resolved(self, value: Any, user_id: str) -> Any:
        """Return a drawn value as it is in this run."""
        if isinstance(value, Seconds):
            return self.world.now + timedelta(seconds=value.from_now)
        if isinstance(value, ChargeNumber):
            charges = self.ids_of(user_id, "charge", "capture")
            if value.number < min(len(charges), 5):
                return charges[value.number]
            ids = self.transaction_ids or ["none yet"]
            return ids[-1 - value.number % len(ids)]
        if isinstance(value, GrantNumber):
            others = [NO_SUCH_ID, *self.transaction_ids[-1:]]
            ids = [*self.ids_of(user_id, "grant", "create_user"), *others]
            return ids[value.number % len(ids)]
        return self.hold_at(value.number, user_id) if isinstance(value, HoldNumber) else value

    def ids_of(self, user_id: str, *operations: str) -> list[str]:
        """Return the ids of a user's transactions of these operations, newest first."""
        chain = (row for row in self.books.chain(user_id) if row["operation"] in operations)
        return [row["transaction_id"] for row in chain if row["transaction_id"] is not None]

    def hold_at(self, number: int, user_id: str) -> str | None:
        """Return a hold, mostly one of the user's that is still open."""
        own = [hold for hold in self.books.holds if hold.user_id == user_id]
        holds = own or self.books.holds
        active = [hold for hold in holds if hold.status == "active"]
        chosen = (active or holds) if number < 3 else holds
        return chosen[-1 - number % len(chosen)].hold_id if chosen else NO_SUCH_ID

    def make_call(self, call: Call) -> None:
        """Make the call on the ledger, and compare the answer."""
        answer = self.world.run(answer_of(send(self.ledger, call)))
        self.compare_answer(call, answer)
        self.world.run(self.compare_user(call.user_id))

    def compare_answer(self, call: Call, answer: Any, *, in_session: bool = False) -> None:
        """Make the call on the model, too, and compare the answers."""
        number = len(self.texts)
        self.texts[number] = str(answer)
        self.calls.append(call)
        try:
            wanted: Done | Refused = self.model.do(call, self.moment, number, in_session=in_session)
        except Refused as refused:
            wanted = refused
        self.world.outcomes[f"{call.method}: {wanted.kind}"] += 1
        assert_same(wanted, answer)
        if isinstance(wanted, Refused):
            return
        if not wanted.replayed:
            self.answers[number] = answer
            self.learn_ids(call, answer, number)
            return
        [known] = [k for k in self.books.keys.values() if k.done.facts is wanted.facts]
        assert answer == self.answers[known.number]

    def learn_ids(self, call: Call, answer: Any, number: int) -> None:
        """Tell the model the ids that the ledger has made."""
        if call.method == "place_hold":
            self.books.holds[-1].hold_id = answer.hold_id
        rows = [row for row in self.books.transactions if row["number"] == number]
        if not hasattr(answer, "transaction_id"):
            return
        assert [answer.transaction_id is not None] * len(rows) == [True for _ in rows]
        for row in rows:
            assert answer.transaction_id not in self.transaction_ids
            self.transaction_ids.append(answer.transaction_id)
            row["transaction_id"] = answer.transaction_id
            for lot in (place for place, _ in row["legs"] if place is not None):
                if lot.number == number:
                    assert answer.lot_id == answer.transaction_id
                    lot.lot_id = answer.lot_id

    async def compare_user(self, user_id: str, session: AsyncClientSession | None = None) -> None:
        """Compare what the ledger and the model say of a user."""
        answer = await answer_of(self.ledger.get_user(user_id, session=session))
        balance = await answer_of(self.ledger.get_balance(user_id, session=session))
        if user_id not in self.books.users:
            wanted = Refused("UserNotFoundError", user_id=user_id)
            assert_same(wanted, answer)
            assert_same(wanted, balance)
            return
        user = self.as_of_now(user_id)
        assert_same(Done("User", user_facts(user_id, user)), answer)
        assert balance == user.credits

    def as_of_now(self, user_id: str) -> User:
        """Return a user as time has left it, without the rows that nobody has written yet."""
        stored = self.books.users[user_id]
        books = self.books.of_user(user_id)
        moment = max(self.moment, stored.updated_at)
        Operations(books, self.configuration).advance(user_id, moment)
        user = books.users[user_id]
        user.seq, user.updated_at = stored.seq, stored.updated_at
        return user

    async def compare_holds(self, user_id: str) -> None:
        """Compare a user's holds, all together and one of each."""
        books = self.books.of_user(user_id)
        moment = max(self.moment, books.users[user_id].updated_at)
        Operations(books, self.configuration).advance(user_id, moment)
        wanted = [shown_hold(hold) for hold in books.holds if hold.user_id == user_id]
        found = [facts_of(hold) for hold in await self.ledger.get_holds(user_id, limit=1000)]
        for hold in found:
            assert not hold.pop("replayed")
            one = facts_of(await self.ledger.get_hold(hold["hold_id"]))
            assert {**hold, "replayed": False} == one
        by_time = sorted(
            wanted, key=lambda hold: (hold["created_at"], hold["hold_id"]), reverse=True
        )
        assert found == by_time

    async def compare_quote(self, user_id: str, action: str, given: Facts | None) -> None:
        """Compare the price of a charge, and whether the user has access."""
        quoted = await answer_of(self.ledger.quote(user_id, action, variables=given))
        allowed = await answer_of(self.ledger.validate_access(user_id, action))
        assert_same(self._expected(lambda: self._quote(user_id, action, given)), quoted)
        assert_same(self._expected(lambda: self._access(user_id, action)), allowed)

    @staticmethod
    def _expected(answer: Callable[[], Any]) -> Any:
        try:
            return answer()
        except Refused as refused:
            return refused

    def _tier(self, user_id: str) -> tuple[User, str | None, Tariff]:
        self.books.found(user_id)
        user, tariff = self.as_of_now(user_id), Tariff(self.configuration)
        # No earlier than the user's last change, as for a charge.
        return user, tariff.tier_in_force(user, max(self.moment, user.updated_at)), tariff

    def _quote(self, user_id: str, action: str, given: Facts | None) -> Done:
        user, tier, tariff = self._tier(user_id)
        cost, _ = tariff.cost(user_id, action, tier, given)
        facts = {"action": action, "tier": tier, "cost": cost, "balance": user.available}
        return Done("Quote", {**facts, "affordable": cost <= user.available})

    def _access(self, user_id: str, action: str) -> bool:
        _, tier, tariff = self._tier(user_id)
        if action not in tariff.prices and action not in tariff.requirements:
            raise Refused("UndefinedActionError", action=action)
        tariff.check_access(user_id, action, tier)
        return True

    async def compare_all(self) -> None:
        """Compare everything stored: rows as the ledger returns them, keys as they are stored."""
        for user_id in (self.prefix + user for user in USERS):
            await self.compare_user(user_id)
            if user_id in self.books.users:
                history = await self.ledger.get_history(user_id, limit=1000)
                self.compare_rows("history", self.books.chain(user_id), history)
                await self.compare_holds(user_id)
            await self.audit_log(user_id)
        database = self.world.databases[self.configuration.decimal_places]
        stored = database["idempotency_records"].find({"_id": {"$regex": f"^{self.prefix}"}})
        expiries = {row["_id"]: row["expiresAt"] async for row in stored}
        assert expiries == {key: known.expires_at for key, known in self.books.keys.items()}

    def compare_rows(self, kind: str, wanted: Sequence[Facts], page: Sequence[Any]) -> None:
        """Compare rows of the ledger with the model's, in order."""
        assert len(page) == len(wanted), (kind, wanted, list(page))
        for expected, actual in zip(wanted, page, strict=True):
            found = facts_of(actual)
            if kind == "history":
                if expected["transaction_id"] is None:
                    expected["transaction_id"] = found["transaction_id"]
                told = {**expected, "legs": shown_legs(expected["legs"])}
                del told["number"]
            else:
                self.compare_audit_id(expected["number"], found.pop("audit_id"))
                told = self.told_of(expected)
            assert found == told

    def told_of(self, row: Facts) -> Facts:
        """Return an audit row as the ledger shows it, without its id."""
        failed = row["status"] == "failed"
        told = {**row, "error_message": self.texts[row["number"]] if failed else None}
        del told["number"]
        return told

    async def audit_log(self, user_id: str) -> list[Facts]:
        """Compare a user's attempts, and return the model's rows, newest first.

        The ids of rows that time led to follow from no order, so rows of one moment may have any.
        """
        found = await self.ledger.get_audit_log(user_id, limit=1000)
        left = self.books.audit_log(user_id)
        ordered: list[Facts] = []
        for actual in found:
            moment = left[0]["created_at"] if left else None
            shown = {name: value for name, value in facts_of(actual).items() if name != "audit_id"}
            same = [
                row for row in left if row["created_at"] == moment and self.told_of(row) == shown
            ]
            assert same, (shown, left[:3])
            ordered.append(same[0])
            left = [row for row in left if row is not same[0]]
        assert not left, left
        self.compare_rows("audit_log", ordered, found)
        return ordered

    def compare_audit_id(self, number: int, audit_id: str) -> None:
        """Check that a successful attempt has its transaction's id."""
        rows = [row for row in self.books.transactions if row["number"] == number != -1]
        if rows and rows[0]["transaction_id"] is not None:
            assert audit_id == rows[0]["transaction_id"]


def send(ledger: CreditLedger, call: Call, **session: Any) -> Awaitable[Any]:
    """Start the call."""
    more: Facts = {"idempotency_key": call.key, "metadata": call.metadata, **session}
    subject = call.user_id if call.subject is None else call.subject
    work: Awaitable[Any] = getattr(ledger, call.method)(subject, **call.arguments, **more)
    return work


async def answer_of(work: Awaitable[Any]) -> Any:
    """Return the result, or the library's error."""
    try:
        return await work
    except CreditError as error:
        return error


def facts_of(result: Any) -> Facts:
    """Return a result's fields, with those of its lots or legs."""
    facts = {each.name: getattr(result, each.name) for each in fields(result)}
    for name in facts.keys() & {"lots", "legs"}:
        facts[name] = tuple(facts_of(part) for part in facts[name])
    return facts


def assert_same(wanted: Any, answer: Any) -> None:
    """Check that the model and the ledger agree."""
    if isinstance(wanted, Refused):
        assert isinstance(answer, CreditError), (wanted, answer)
        assert (type(answer).__name__, answer.code) == (wanted.kind, wanted.code)
        facts = {name: value for name, value in vars(answer).items() if name[0] != "_"}
        assert facts == wanted.facts
    elif isinstance(wanted, Done):
        assert type(answer).__name__ == wanted.kind, (wanted, answer)
        facts = facts_of(answer)
        facts.pop("transaction_id", None)
        assert facts.pop("replayed", False) == wanted.replayed
        assert facts == wanted.facts
    else:
        assert answer == wanted
