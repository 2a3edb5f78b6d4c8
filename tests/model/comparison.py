"""The ledger and the model side by side: both get the same calls, and their answers must agree."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar, TypeVar

from hypothesis.stateful import RuleBasedStateMachine
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo import CreditError, CreditLedger
from tests.model.books import Books, Call, Done, Facts, Refused, Tariff, User, milliseconds
from tests.model.configurations import CONFIGURATIONS
from tests.model.plans import METADATA, USERS, ChargeNumber, Plan, Seconds
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
        return Call(plan.method, user_id, arguments, key, METADATA[plan.metadata])

    def resolved(self, value: Any, user_id: str) -> Any:
        """Return a drawn value as it is in this run."""
        if isinstance(value, Seconds):
            return self.world.now + timedelta(seconds=value.from_now)
        if isinstance(value, ChargeNumber):
            chain = self.books.chain(user_id)
            charges = [row["transaction_id"] for row in chain if row["operation"] == "charge"]
            if value.number < min(len(charges), 5):
                return charges[value.number]
            ids = self.transaction_ids or ["none yet"]
            return ids[-1 - value.number % len(ids)]
        return value

    def make_call(self, call: Call) -> None:
        """Make the call on the ledger, and compare the answer."""
        answer = self.world.run(answer_of(send(self.ledger, call)))
        self.compare_answer(call, answer)
        self.world.run(self.compare_user(call.user_id))

    def compare_answer(self, call: Call, answer: Any) -> None:
        """Make the call on the model, too, and compare the answers."""
        number = len(self.texts)
        self.texts[number] = str(answer)
        self.calls.append(call)
        try:
            wanted: Done | Refused = self.model.do(call, self.moment, number)
        except Refused as refused:
            wanted = refused
        self.world.outcomes[f"{call.method}: {wanted.kind}"] += 1
        assert_same(wanted, answer)
        if isinstance(wanted, Refused) or call.method == "create_user":
            return
        if not wanted.replayed:
            assert answer.transaction_id not in self.transaction_ids
            self.transaction_ids.append(answer.transaction_id)
            self.books.transactions[-1]["transaction_id"] = answer.transaction_id
            return
        [known] = [k for k in self.books.keys.values() if k.done.facts is wanted.facts]
        [row] = [row for row in self.books.transactions if row["number"] == known.number]
        assert answer.transaction_id == row["transaction_id"]

    async def compare_user(self, user_id: str, session: AsyncClientSession | None = None) -> None:
        """Compare what the ledger and the model say of a user."""
        answer = await answer_of(self.ledger.get_user(user_id, session=session))
        balance = await answer_of(self.ledger.get_balance(user_id, session=session))
        if user_id not in self.books.users:
            wanted = Refused("UserNotFoundError", user_id=user_id)
            assert_same(wanted, answer)
            assert_same(wanted, balance)
            return
        user = self.books.users[user_id]
        assert_same(Done("User", user_facts(user_id, user)), answer)
        assert balance == user.credits

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
        user, tariff = self.books.found(user_id), Tariff(self.configuration)
        # No earlier than the user's last change, as for a charge.
        return user, tariff.tier_in_force(user, max(self.moment, user.updated_at)), tariff

    def _quote(self, user_id: str, action: str, given: Facts | None) -> Done:
        user, tier, tariff = self._tier(user_id)
        cost, _ = tariff.cost(user_id, action, tier, given)
        facts = {"action": action, "tier": tier, "cost": cost, "balance": user.credits}
        return Done("Quote", {**facts, "affordable": cost <= user.credits})

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
            audit_log = await self.ledger.get_audit_log(user_id, limit=1000)
            self.compare_rows("audit_log", self.books.audit_log(user_id), audit_log)
        database = self.world.databases[self.configuration.decimal_places]
        stored = database["idempotency_records"].find({"_id": {"$regex": f"^{self.prefix}"}})
        expiries = {row["_id"]: row["expiresAt"] async for row in stored}
        assert expiries == {key: known.expires_at for key, known in self.books.keys.items()}

    def compare_rows(self, kind: str, wanted: Sequence[Facts], page: Sequence[Any]) -> None:
        """Compare rows of the ledger with the model's, in order."""
        assert len(page) == len(wanted), (kind, wanted, list(page))
        for expected, actual in zip(wanted, page, strict=True):
            found = facts_of(actual)
            number = expected["number"]
            told = {name: value for name, value in expected.items() if name != "number"}
            if kind == "history":
                if told["transaction_id"] is None:
                    expected["transaction_id"] = told["transaction_id"] = found["transaction_id"]
            else:
                audit_id = found.pop("audit_id")
                self.compare_audit_id(number, audit_id)
                failed = told["status"] == "failed"
                told["error_message"] = self.texts[number] if failed else None
            assert found == told

    def compare_audit_id(self, number: int, audit_id: str) -> None:
        """Check that a successful attempt has its transaction's id."""
        rows = [row for row in self.books.transactions if row["number"] == number]
        if rows and rows[0]["transaction_id"] is not None:
            assert audit_id == rows[0]["transaction_id"]


def send(ledger: CreditLedger, call: Call, **session: Any) -> Awaitable[Any]:
    """Start the call."""
    more: Facts = {"idempotency_key": call.key, "metadata": call.metadata, **session}
    work: Awaitable[Any] = getattr(ledger, call.method)(call.user_id, **call.arguments, **more)
    return work


async def answer_of(work: Awaitable[Any]) -> Any:
    """Return the result, or the library's error."""
    try:
        return await work
    except CreditError as error:
        return error


def facts_of(result: Any) -> Facts:
    """Return a result's fields."""
    return {each.name: getattr(result, each.name) for each in fields(result)}


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
