"""The observer: what it is told, what it is never told, and that it disturbs nothing."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeAlias

import pytest
from pymongo import AsyncMongoClient

from credit_mongo import (
    AttemptRetried,
    BatchEnded,
    CommitOutcomeUnknownError,
    ConfigurationError,
    CreditConfig,
    CreditLedger,
    Event,
    InsufficientCreditsError,
    LedgerBusyError,
    OperationEnded,
    OutcomeUnknown,
    SessionReaped,
    StorageError,
    TurnStuck,
    TurnTaken,
)
from tests.integration.promises import (
    Client,
    Database,
    Row,
    check_promises,
    failing,
    with_options,
)

APP = "observed"
SECRETS = ("ann@example.com", "the-key-of-a-request", "a-note-of-a-customer")
USER, KEY, NOTE = SECRETS
CONFIG = CreditConfig(costs={"post": {"default": 10}}, operation_timeout_seconds=5)
COMMIT = "commitTransaction"
Told: TypeAlias = list[Event]


@asynccontextmanager
async def observed_ledger(
    uri: str, database: Database, config: CreditConfig = CONFIG
) -> AsyncIterator[tuple[CreditLedger, Told]]:
    """A ledger on a client of its own with one user, and what its observer is told from then on."""
    told: Told = []
    async with CreditLedger(database, CONFIG) as patient:
        await patient.ensure_indexes()
        await patient.create_user(USER, credits=100)
    async with AsyncMongoClient[Row](with_options(uri, appName=APP), tz_aware=True) as own:
        await own.admin.command("ping")
        ledger = CreditLedger(own[database.name], config, observer=told.append)
        await ledger.get_balance(USER)  # which opens it
        yield ledger, told
        await ledger.close()
    texts = [str(event) for event in told]
    assert not [secret for secret, text in itertools.product(SECRETS, texts) if secret in text]
    await check_promises(database)


def of(kind: type, told: Told) -> list[Any]:
    """The events of one kind."""
    return [event for event in told if isinstance(event, kind)]


async def charge(ledger: CreditLedger, **options: Any) -> Any:
    """One charge with everything that an observer must not see."""
    return await ledger.charge(
        USER, "post", idempotency_key=KEY, metadata={"note": NOTE}, **options
    )


async def test_it_is_told_each_operation_with_its_outcome_and_duration(
    database: Database, replica_set_uri: str
) -> None:
    """Results, replays, refusals, and those in the application's transaction."""
    async with observed_ledger(replica_set_uri, database) as (ledger, told):
        await charge(ledger)
        await charge(ledger)
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge(USER, "post", amount=1000)
        client = ledger._database.client
        async with client.start_session() as session, await session.start_transaction():
            await ledger.grant(USER, 5, action="gift", session=session)
        await ledger.close()
        with pytest.raises(LedgerBusyError):
            await charge(ledger)
        ended = of(OperationEnded, told)
    assert [(each.operation, each.code, each.replayed) for each in ended] == [
        ("charge", "OK", False),
        ("charge", "OK", True),
        ("charge", "INSUFFICIENT_CREDITS", False),
        ("grant", "OK", False),
        ("charge", "LEDGER_BUSY", False),
    ]
    assert all(0 <= each.seconds < 5 for each in ended)
    assert max(each.seconds for each in ended) > 0


async def test_it_is_told_how_large_batches_are_and_how_many_wait(
    database: Database, replica_set_uri: str
) -> None:
    """Every request is in one batch. While one commits, the others wait."""
    async with observed_ledger(replica_set_uri, database) as (ledger, told):
        charges = [asyncio.ensure_future(ledger.charge(USER, "post", amount=1)) for _ in range(20)]
        await asyncio.gather(*charges)
        batches = of(BatchEnded, told)
    assert sum(batch.requests for batch in batches) == 20
    assert max(batch.requests for batch in batches) > 1
    assert batches[-1].queued == 0
    assert all(batch.seconds > 0 for batch in batches)


async def test_it_is_told_of_a_caller_that_was_cancelled(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """Whether or not the charge happens."""
    async with observed_ledger(replica_set_uri, database) as (ledger, told):
        async with failing(
            client, APP, failCommands=["find"], blockConnection=True, blockTimeMS=300
        ):
            call = asyncio.ensure_future(charge(ledger))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert [each.code for each in of(OperationEnded, told)] == ["CANCELLED"]


@pytest.mark.parametrize(
    ("data", "reason", "error"),
    [
        (
            {"failCommands": ["update"], "errorCode": 112, "errorLabels": ["TransientTransaction"]},
            "conflict",
            "WriteConflict",
        ),
        ({"failCommands": ["find"], "closeConnection": True}, "failure", "AutoReconnect"),
    ],
    ids=["conflict", "lost connection"],
)
async def test_it_is_told_of_each_retry(
    *,
    client: Client,
    database: Database,
    replica_set_uri: str,
    data: dict[str, Any],
    reason: str,
    error: str,
) -> None:
    """Why, which attempt has failed, and how long the batch waits."""
    async with observed_ledger(replica_set_uri, database) as (ledger, told):
        async with failing(client, APP, {"times": 1}, **data) as failure:
            await charge(ledger)
        assert failure.hits == 1
        [retry] = of(AttemptRetried, told)
        assert (retry.reason, retry.error) == (reason, error)
        assert (retry.attempt, retry.requests) == (1, 1)
        assert 0 <= retry.delay_seconds <= 0.02


async def test_it_is_told_of_a_key_that_another_process_has_used(
    database: Database, replica_set_uri: str
) -> None:
    """The first attempt fails on the key; the second one looks it up."""
    async with observed_ledger(replica_set_uri, database) as (ledger, told):
        async with CreditLedger(database, CONFIG) as other:
            await charge(other)
        assert (await charge(ledger)).replayed
        assert [each.reason for each in of(AttemptRetried, told)] == ["duplicate"]


async def test_it_is_told_of_a_commit_without_an_answer(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """Also when the next attempt settles it, and no caller hears of it."""
    applied = {"writeConcernError": {"code": 100, "errmsg": "x"}}
    async with observed_ledger(replica_set_uri, database) as (ledger, told):
        async with failing(client, APP, {"times": 1}, failCommands=[COMMIT], **applied):
            assert (await charge(ledger)).balance_after == 90
        [unknown] = of(OutcomeUnknown, told)
        assert unknown.requests == 1
        assert [each.code for each in of(OperationEnded, told)] == ["OK"]


async def test_it_is_told_of_an_outcome_that_stays_unknown_and_of_the_session_s_end(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """The caller hears it too, and the open transaction is ended in the background."""
    hasty = CONFIG.model_copy(update={"operation_timeout_seconds": 2})
    blocked = {"blockConnection": True, "blockTimeMS": 4000}
    async with observed_ledger(replica_set_uri, database, hasty) as (ledger, told):
        async with failing(client, APP, {"times": 1}, failCommands=[COMMIT], **blocked):
            with pytest.raises(CommitOutcomeUnknownError):
                await charge(ledger)
        await charge(ledger)
        [first, second] = of(OperationEnded, told)
        assert (first.code, second.code) == ("COMMIT_OUTCOME_UNKNOWN", "OK")
        assert of(OutcomeUnknown, told)
        for _ in range(200):
            if of(SessionReaped, told):
                break
            await asyncio.sleep(0.05)
        assert all(reaped.seconds > 0 for reaped in of(SessionReaped, told))
        assert of(SessionReaped, told)


async def test_it_is_told_of_turns_that_are_taken_and_of_one_that_is_kept(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """The holder is a transaction that never ends: the ledger goes on without turns."""
    async with observed_ledger(replica_set_uri, database) as (ledger, told):
        clock = asyncio.get_running_loop().time
        ledger._committer._turns.met_conflict(2, clock())
        await ledger.charge(USER, "post")
        [taken] = of(TurnTaken, told)
        assert 0 <= taken.waited_seconds < 5
        assert not of(TurnStuck, told)
        ledger._committer._turns.met_conflict(2, clock())
        async with client.start_session() as session:
            await session.start_transaction()
            turn = client[database.name]["turns"]
            await turn.update_one({"_id": "turn"}, {"$inc": {"taken": 1}}, session=session)
            await ledger.charge(USER, "post")
            await session.abort_transaction()
        assert len(of(TurnStuck, told)) == 1
        assert "turn" in {each.reason for each in of(AttemptRetried, told)}


def fails(_event: Event) -> NoReturn:
    """An observer with a bug."""
    raise RuntimeError("a bug of the application's")


def is_cancelled(_event: Event) -> NoReturn:
    """An observer that raises what asyncio cancels tasks by."""
    raise asyncio.CancelledError


@pytest.mark.parametrize("observer", [fails, is_cancelled])
async def test_an_observer_that_raises_disturbs_no_charge_and_is_logged_once(
    client: Client,
    database: Database,
    replica_set_uri: str,
    caplog: pytest.LogCaptureFixture,
    observer: Callable[[Event], None],
) -> None:
    """Neither results, retries and refusals, nor an unknown outcome."""
    caplog.set_level(logging.WARNING, logger="credit_mongo")
    uri = with_options(replica_set_uri, appName=APP)
    applied = {"writeConcernError": {"code": 100, "errmsg": "x"}}
    async with CreditLedger.connect(
        uri, database=database.name, config=CONFIG, observer=observer
    ) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user(USER, credits=100)
        async with failing(client, APP, {"times": 1}, failCommands=[COMMIT], **applied):
            assert (await charge(ledger)).balance_after == 90
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge(USER, "post", amount=1000)
        assert (await charge(ledger)).replayed
    logged = [record for record in caplog.records if "observer" in record.getMessage()]
    assert len(logged) == 1
    assert not [secret for secret in SECRETS if secret in caplog.text]
    await check_promises(database)


async def test_what_is_no_plain_function_is_refused_at_once(
    database: Database, replica_set_uri: str
) -> None:
    """A coroutine function would never run: nobody awaits it."""

    async def waits(_event: Event) -> None:
        """Nobody waits for it."""

    for wrong in (5, "print", waits):
        observer: Any = wrong
        with pytest.raises(ConfigurationError, match="observer: must be a") as refused:
            CreditLedger(database, CONFIG, observer=observer)
        assert refused.value.field == "observer"
        with pytest.raises(ConfigurationError, match="observer"):
            CreditLedger.connect(replica_set_uri, database="x", config=CONFIG, observer=observer)


async def test_failures_before_anything_was_sent_are_told_as_such(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """A deadline that passes while reading leaves no outcome unknown."""
    hasty = CONFIG.model_copy(update={"operation_timeout_seconds": 2})
    blocked = {"blockConnection": True, "blockTimeMS": 4000}
    async with observed_ledger(replica_set_uri, database, hasty) as (ledger, told):
        async with failing(client, APP, {"times": 1}, failCommands=["find"], **blocked):
            with pytest.raises(StorageError):
                await charge(ledger)
        assert [each.code for each in of(OperationEnded, told)] == ["STORAGE_ERROR"]
        assert not of(OutcomeUnknown, told)
