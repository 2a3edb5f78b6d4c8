"""Passwords, keys and metadata appear in no log, error or repr, even at DEBUG."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import inspect
import logging
import reprlib
import traceback
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

import credit_mongo
from credit_mongo import (
    AccountDataError,
    AuditLog,
    CaptureResult,
    ChargeResult,
    ConfigurationError,
    CreditConfig,
    CreditError,
    CreditLedger,
    GrantResult,
    Hold,
    IdempotencyConflictError,
    OverdraftResult,
    RefundResult,
    RevokeResult,
    Settings,
    StorageError,
    Transaction,
    credit_documents,
)
from credit_mongo.config import CollectionNames
from credit_mongo.core.operations import OPERATIONS
from credit_mongo.engine import tasks
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.cleanup import clean_up
from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.export.exporting import export_transactions
from credit_mongo.maintenance.status import status_of
from credit_mongo.maintenance.usage.measuring import usage_of
from credit_mongo.maintenance.verification.repair import repair
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.access_control import ADMINISTRATOR, GuardedReplicaSet
from tests.integration.paid_site import CONFIG, Site
from tests.integration.promises import Client, Database, failing, rows, with_options

UTC = timezone.utc
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
APP_NAME = "secrecy"
# Part of every secret, and of nothing else.
WORD = "opensesame"
PASSWORD = f"{WORD}-password"
METADATA: dict[str, Any] = {
    f"{WORD}-name": 1,
    "value": f"{WORD}-value",
    "nested": [{"deep": {f"{WORD}-deep": f"{WORD}-deep-value"}}],
    "bytes": f"{WORD}-bytes".encode(),
}
KEYS = iter(f"{WORD}-key-{number}" for number in range(10_000))
WORDS = (
    WORD,
    base64.b64encode(WORD.encode()).decode()[:12],
    WORD.encode().hex(),
)


def contains_secret(text: str) -> bool:
    """Whether a text contains part of a secret."""
    return any(word.lower() in text.lower() for word in WORDS)


class LogRecorder(logging.Handler):
    """Records what any logger says: message, arguments, traceback and the record itself."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.records: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{self.format(record)} {record.msg!r} {record.msg} {record.args!r}"
        self.records.append((record.name, text))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Don't record what the test itself asks the database for, as an application may."""
        records, self.records = self.records, []
        try:
            yield
        finally:
            self.records = records

    def of(self, logger: str) -> list[str]:
        """Return what one logger said."""
        return [text for name, text in self.records if name == logger]

    def check(self) -> None:
        """Check that none of it contains a secret."""
        told = [f"{name}: {text}" for name, text in self.records if contains_secret(text)]
        assert not told, "\n\n".join(told)


@pytest_asyncio.fixture
async def logged() -> AsyncIterator[LogRecorder]:
    """Every logger at DEBUG, including those that do not propagate.

    asyncio's debug mode logs each step of each task and callback, with all that they show.
    """
    loop = asyncio.get_running_loop()
    shown = reprlib.aRepr
    limits = {name: getattr(shown, name) for name in vars(shown) if name.startswith("max")}
    for name in limits:
        setattr(shown, name, 1_000_000)
    slow_from = loop.slow_callback_duration
    loop.slow_callback_duration = 0
    loop.set_debug(True)
    handler = LogRecorder()
    loggers = [logging.getLogger()]
    loggers += [logging.getLogger(name) for name in logging.Logger.manager.loggerDict]
    before = [(logger, logger.level, logger.propagate, logger.disabled) for logger in loggers]
    for logger in loggers[1:]:
        logger.setLevel(logging.NOTSET)
        logger.propagate, logger.disabled = True, False
    loggers[0].setLevel(logging.DEBUG)
    loggers[0].addHandler(handler)
    yield handler
    loop.set_debug(False)
    loop.slow_callback_duration = slow_from
    for name, limit in limits.items():
        setattr(shown, name, limit)
    loggers[0].removeHandler(handler)
    for logger, level, propagate, disabled in before:
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled


def check_error(error: BaseException) -> None:
    """Check that an error, and the library's errors behind it, show no secret."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CreditError):
            shown = [str(seen), repr(seen), repr(seen.args), *traceback.format_exception_only(seen)]
            assert not contains_secret(" ".join(shown)), shown
        seen = seen.__cause__ or seen.__context__
    # As applications log it, with its causes.
    if isinstance(error, CreditError):
        told = "".join(traceback.format_exception(error))
        assert not contains_secret(told), told


# --- The life of a ledger -------------------------------------------------------------------------


def config(**changes: Any) -> CreditConfig:
    """Prices and tiers."""
    return CreditConfig(
        costs={
            "post": {"default": 10},
            "ai": {"default": "{token} * 2 / {parts}"},
        },
        membership={"tiers": {"free": 0, "premium": 1}, "credits_caps": {"free": 5, "premium": 99}},
        **changes,
    )


class Clock:
    """The real time, which a test can move forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def secret(**more: Any) -> dict[str, Any]:
    """Return a key and metadata for a call."""
    return {"idempotency_key": next(KEYS), "metadata": METADATA, **more}


class Life:
    """Calls on a ledger, with a record of all that they returned."""

    def __init__(self, ledger: CreditLedger, clock: Clock) -> None:
        self.ledger = ledger
        self.clock = clock
        self.database = ledger._database.name
        self.results: list[Any] = []
        self.errors: list[BaseException] = []

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Return a result or an error, and record it."""
        try:
            result = await getattr(self.ledger, name)(*arguments, **options)
        except CreditError as error:
            self.errors.append(error)
            return error
        self.results.append(result)
        return result

    async def succeed(self) -> None:
        """Make every kind of call that succeeds."""
        await self.call("create_user", "u", credits=60, membership_tier="free", **secret())
        options = secret()
        charge = await self.call("charge", "u", "post", **options)
        assert (await self.call("charge", "u", "post", **options)).replayed
        self.clock.ahead += timedelta(days=2)
        assert not (await self.call("charge", "u", "post", **options)).replayed
        await self.call(
            "refund", "u", 1, action="x", transaction_id=charge.transaction_id, **secret()
        )
        await self.call("grant", "u", 5, action="x", **secret())
        await self.call("upgrade_tier", "u", "premium", **secret())
        await self.call("renew_tier", "u", membership_expires_at=FUTURE, **secret())
        await self.call("downgrade_tier", "u", "free", **secret())
        await self.call("grant", "u", 500, action="x", **secret())
        await self.call("charge", "u", "ai", variables={"token": 5, "parts": 2}, **secret())
        await asyncio.gather(*(self.call("charge", "u", "post", **secret()) for _ in range(20)))
        for name in ("get_user", "get_balance", "get_history", "get_audit_log"):
            await self.call(name, "u")
        page = await self.call("get_history", "u", limit=2)
        await self.call("get_history", "u", cursor=page.next_cursor)
        await self.call("quote", "u", "post")
        await self.call("validate_access", "u", "post")
        await self.call("ensure_indexes")
        assert not self.errors

    async def be_refused(self) -> None:
        """Make every kind of call that is refused, and wrong calls with secrets in them."""
        key = next(KEYS)
        await self.call("grant", "u", 1, action="x", idempotency_key=key, metadata=METADATA)
        conflict = await self.call("grant", "u", 2, action="x", idempotency_key=key)
        assert isinstance(conflict, IdempotencyConflictError)
        before = len(self.errors)
        refused = [
            self.call("charge", "u", "post", amount=10**9, **secret()),
            self.call("charge", "nobody", "post", **secret()),
            self.call("charge", "u", "unheard-of", **secret()),
            self.call("charge", "u", "ai", variables={"token": 5}, **secret()),
            self.call("charge", "u", "ai", variables={"token": 5, "parts": 0}, **secret()),
            self.call("create_user", "u", **secret()),
            self.call("refund", "u", 5, action="x", transaction_id="6" * 24, **secret()),
            self.call("upgrade_tier", "u", "unheard-of", **secret()),
            self.call("downgrade_tier", "u", "premium", **secret()),
            self.call("grant", "u", 1, action="x", idempotency_key=f"{WORD}\n"),
            self.call("grant", "u", 1, action="x", idempotency_key=WORD * 99),
            self.call("grant", "u", 1, action="x", idempotency_key={WORD: WORD}),
            self.call("grant", "u", 1, action="x", idempotency_key=[WORD]),
            self.call("grant", "u", 1, action="x", idempotency_key=WORD.encode()),
            self.call("grant", "u", 1, action="x", metadata=WORD),
            self.call("grant", "u", 1, action="x", metadata={WORD: object()}),
            self.call("grant", "u", 1, action="x", metadata={WORD: WORD * 10_000}),
            self.call("grant", "u", 1, action="x", metadata={f"{WORD}\x00": 1}),
            self.call("grant", "u", 1, action="x", metadata={"a": f"{WORD}\ud800"}),
            self.call("grant", "u", WORD, action="x"),
            self.call("grant", "u", 1, action="x", session=WORD),
            self.call("get_history", "u", cursor=WORD),
            self.call("get_audit_log", "u", status=WORD),
        ]
        await asyncio.gather(*refused)
        assert len(self.errors) == before + len(refused)

    async def fail(self, client: Client, database: Database) -> None:
        """Make calls that the server fails in each way, or whose documents it refuses."""
        for command in ("find", "insert", "update", "delete", "commitTransaction"):
            for data in (
                {"errorCode": 13},
                {"errorCode": 112},
                {"errorCode": 50},
                {"errorCode": 11000},
                {"errorCode": 121},
                {"closeConnection": True},
                {"writeConcernError": {"code": 100, "errmsg": "x"}},
            ):
                mode = {"times": 1}
                async with failing(client, APP_NAME, mode, failCommands=[command], **data):
                    await self.call("grant", "u", 1, action="x", **secret())
                async with failing(client, APP_NAME, mode, failCommands=[command], **data):
                    await self.call("charge", "u", "post", amount=10**9, **secret())
                async with failing(client, APP_NAME, mode, failCommands=[command], **data):
                    await self.call("get_history", "u")
        await self._meet_an_index(database)
        await self._meet_a_validator(database)

    async def _meet_an_index(self, database: Database) -> None:
        # The server's own error quotes the duplicate values.
        await database["transactions"].delete_many({})
        await database["transactions"].create_index("metadata.value", unique=True)
        for _ in range(2):
            await self.call("grant", "u", 1, action="x", **secret())
        await database["transactions"].drop_indexes()

    async def _meet_a_validator(self, database: Database) -> None:
        for name in ("transactions", "audit_logs", "idempotency_records"):
            await database.command({"collMod": name, "validator": {"never": {"$exists": True}}})
            await self.call("grant", "u", 1, action="x", **secret())
            await self.call("charge", "u", "post", amount=10**9, **secret())
            await database.command({"collMod": name, "validator": {}})

    async def be_in_the_way(self, client: Client) -> None:
        """Cause conflicts with an application's transaction, and make calls within it."""
        async with client.start_session() as session:
            await session.start_transaction()
            await client[self.database]["users"].update_one(
                {"_id": "u"}, {"$set": {"mine": 1}}, session=session
            )
            await self.call("grant", "u", 1, action="x", **secret())
            await session.abort_transaction()
        own = self.ledger._database.client
        async with own.start_session() as session:
            for ending in ("abort_transaction", "commit_transaction"):
                await session.start_transaction()
                options = secret(session=session)
                await self.call("grant", "u", 1, action="x", **options)
                await self.call("grant", "u", 1, action="x", **options)
                await self.call("charge", "u", "post", amount=10**9, **secret(session=session))
                await self.call("get_history", "u", session=session)
                await getattr(session, ending)()

    def check(self) -> None:
        """Check that nothing returned shows a secret."""
        for error in self.errors:
            check_error(error)
        for result in self.results:
            shown = f"{result!r} {result} "
            if isinstance(result, credit_mongo.HistoryPage | credit_mongo.AuditPage):
                shown += f"{list(result)!r} {result[:2]!r}"
            assert not contains_secret(shown), shown


@pytest_asyncio.fixture(params=["a client of its own", "the application's client"])
async def life(
    request: pytest.FixtureRequest, replica_set_uri: str, database: Database, logged: LogRecorder
) -> AsyncIterator[Life]:
    """A ledger, connected in each way, while every logger is at DEBUG."""
    clock = Clock()
    settings = config(operation_timeout_seconds=2)
    uri = with_options(replica_set_uri, appName=APP_NAME)
    if request.param == "a client of its own":
        ledger = CreditLedger.connect(uri, database=database.name, config=settings, clock=clock)
        async with ledger:
            yield Life(ledger, clock)
    else:
        async with (
            AsyncMongoClient[dict[str, Any]](uri, tz_aware=True) as client,
            CreditLedger(client[database.name], settings, clock=clock) as ledger,
        ):
            yield Life(ledger, clock)


async def test_success_and_refusal_show_no_secret(
    life: Life, database: Database, logged: LogRecorder
) -> None:
    """Logs, errors and reprs show none at DEBUG, on the ledger's own client or the application's.

    The secrets are only where they belong: in the database, and in what a caller reads.
    """
    await life.succeed()
    await life.be_refused()
    life.check()
    logged.check()
    commands = logged.of("pymongo.command")
    for name in ("find", "insert", "update", "delete", "aggregate", "commitTransaction"):
        assert any(f'"commandName": "{name}"' in text for text in commands), name
    with logged.aside():
        assert contains_secret(str(await rows(database, "transactions")))
        assert contains_secret(str(await rows(database, "idempotency_records")))
    assert contains_secret(str((await life.ledger.get_history("u"))[0].metadata))
    logged.check()


@pytest.mark.cases(1)
async def test_failures_of_the_database_show_no_secret(
    life: Life, client: Client, database: Database, logged: LogRecorder
) -> None:
    """Each command fails in each way, and the application's rules refuse documents."""
    await life.call("ensure_indexes")
    await life.call("create_user", "u", credits=60, **secret())
    await life.fail(client, database)
    await life.be_in_the_way(client)
    assert len([error for error in life.errors if type(error) is StorageError]) >= 20
    life.check()
    logged.check()


async def test_a_document_of_other_software_shows_no_secret(
    life: Life, database: Database, logged: LogRecorder
) -> None:
    """A field that should be a number can hold anything."""
    await life.call("create_user", "u", credits=60)
    with logged.aside():
        change = {"q": {"_id": "u"}, "u": {"$set": {"credits": f"{WORD}-balance"}}}
        unchecked = {"bypassDocumentValidation": True}
        await database.command({"update": "users", "updates": [change], **unchecked})
    await life.call("grant", "u", 1, action="x", **secret())
    await life.call("get_balance", "u")
    assert {type(error) for error in life.errors} == {AccountDataError}
    life.check()
    logged.check()


async def test_the_applications_own_commands_are_logged_unchanged(
    life: Life, logged: LogRecorder
) -> None:
    """They are logged on the same client and collections, even while the ledger works."""
    await life.call("create_user", "u", credits=60)
    users = life.ledger._database.client[life.database]["users"]

    async def look() -> None:
        for _ in range(10):
            assert await users.find_one({"_id": WORD}) is None

    await asyncio.gather(look(), *(life.call("charge", "u", "post", **secret()) for _ in range(5)))
    told = [text for text in logged.of("pymongo.command") if contains_secret(text)]
    assert len(told) == 10
    assert all('"commandName": "find"' in text for text in told)
    life.check()


@pytest.mark.drivers("pymongo", "motor")
async def test_jobs_show_no_secret(database: Database, tmp_path: Path, logged: LogRecorder) -> None:
    """Jobs read rows with keys and metadata in bulk, in tasks of their own."""
    async with CreditLedger(database, config(), clock=Clock()) as ledger:
        await ledger.ensure_indexes()
        for user_id in ("ann", "bob"):
            await ledger.create_user(user_id, credits=60, **secret())
            charge = await ledger.charge(user_id, "post", **secret())
            await ledger.refund(
                user_id, 1, action="x", transaction_id=charge.transaction_id, **secret()
            )
    assert (await verify(database)).findings == ()
    assert (await verify(database, user_ids=["ann"])).findings == ()
    await database["users"].update_one({"_id": "bob"}, {"$inc": {"credits": 7}})
    assert (await repair(database, operator="ann", reason="a test")).is_complete
    exported = tmp_path / "all.jsonl"
    assert (await export_transactions(database, exported, format="jsonl")).transactions == 7
    await status_of(database)
    now = datetime.now(UTC)
    await usage_of(database, now - timedelta(days=1), now)
    done = await archive(
        database, older_than=datetime.now(UTC), kinds="transactions", lease_seconds=1
    )
    assert done.transactions == 7
    await archive(
        database,
        older_than=datetime.now(UTC),
        kinds="audit_logs",
        lease_seconds=1,
        directory=tmp_path / "files",
        file_format="parquet",
    )
    assert (await verify(database)).findings == ()
    assert (await erase_user(database, "ann")).idempotency_records == 3
    await clean_up(database, grace_seconds=0)
    logged.check()
    assert any("Executing" in text for text in logged.of("asyncio"))
    with logged.aside():
        assert contains_secret(await asyncio.to_thread(exported.read_text))


async def test_paid_requests_show_no_secret(database: Database, logged: LogRecorder) -> None:
    """Their tasks know the run, whose id is a key, and the header's key."""
    site = Site(database, CONFIG)
    async with site.app.router.lifespan_context(site.app):
        await site.ledger.create_user("ann", credits=60)
        runs = []
        for key, body in ((f"{WORD}-1", WORD), (f"{WORD}-2", WORD), (f"{WORD}-1", "another")):
            await site.post(key, json=body)
        with logged.aside():
            runs = [row["run"] for row in await rows(database, "paid_requests")]
    logged.check()
    assert len(runs) == 2
    told = [text for text in logged.of("asyncio") if any(run in text for run in runs)]
    assert not told, told[0]


def test_a_task_shows_what_it_does_and_no_value() -> None:
    """This holds whether it has a result, an error or neither."""

    async def work(outcome: object) -> object:
        await asyncio.sleep(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def run() -> None:
        for outcome in (WORD, ValueError(WORD)):
            task = tasks.start(work(outcome))
            task.set_name("t")
            shown = [repr(task)]
            await asyncio.wait({task})
            shown.append(repr(task))
            assert task.exception() is None or task.exception() is outcome
            cancelled = tasks.start(work(outcome))
            cancelled.cancel()
            await asyncio.wait({cancelled})
            assert "<Task cancelled name=" in repr(cancelled)
            coroutine = "test_a_task_shows_what_it_does_and_no_value.<locals>.work()"
            assert shown == [
                f"<Task {state} name='t' coro=<{coroutine}>>" for state in ("pending", "finished")
            ]

    asyncio.run(run())


# --- Connections ----------------------------------------------------------------------------------


async def failure_to_enter(uri: str) -> BaseException:
    """Return the error of a ledger that cannot open there."""
    ledger = CreditLedger.connect(uri, database="app", config=config(operation_timeout_seconds=1))
    with pytest.raises(StorageError) as caught:
        await ledger.__aenter__()
    assert not contains_secret(repr(ledger))
    return caught.value


async def test_an_unreachable_server_shows_no_password(logged: LogRecorder) -> None:
    """The driver looks for it repeatedly, and logs that."""
    error = await failure_to_enter(f"mongodb://ann:{PASSWORD}@127.0.0.1:1/?replicaSet=rs0")
    check_error(error)
    assert not contains_secret("".join(traceback.format_exception(error)))
    assert logged.of("pymongo.serverSelection")
    logged.check()


@pytest_asyncio.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuardedReplicaSet]:
    """A server with access control."""
    async with GuardedReplicaSet(tmp_path_factory.mktemp("guarded")) as server:
        server.password = PASSWORD
        await server.create_administrator()
        yield server


@pytest.mark.parametrize("mechanism", ["", "SCRAM-SHA-1", "SCRAM-SHA-256"])
async def test_a_password_is_in_no_log_whether_it_is_right_or_wrong(
    guarded: GuardedReplicaSet, logged: LogRecorder, mechanism: str
) -> None:
    """The driver does not log the authentication. A wrong password is not logged either."""
    option = f"&authMechanism={mechanism}" if mechanism else ""
    uri = guarded.uri_of(ADMINISTRATOR) + option
    settings = config(operation_timeout_seconds=5)
    async with CreditLedger.connect(uri, database="app", config=settings) as ledger:
        life = Life(ledger, Clock())
        await life.call("create_user", f"u{mechanism}", credits=9, **secret())
        await life.call("charge", f"u{mechanism}", "post", **secret())
        assert not contains_secret(repr(ledger))
    error = await failure_to_enter(uri.replace(PASSWORD, f"wrong-{WORD}"))
    assert "AuthenticationFailed" in str(error)
    check_error(error)
    assert not contains_secret("".join(traceback.format_exception(error)))
    life.check()
    logged.check()


async def test_a_refused_uri_shows_no_password(logged: LogRecorder) -> None:
    """Settings from the environment hide it, too."""
    for uri in (
        f"mongodb://ann:{PASSWORD}@127.0.0.1/?tls=True",
        f"mongodb://ann:{PASSWORD}@127.0.0.1:port/",
        f"mongodb://ann:{WORD}/{WORD}@127.0.0.1/",
        f"mongodb://ann:{WORD}@{WORD}@127.0.0.1/",
        f"{WORD}@127.0.0.1",
    ):
        with pytest.raises(ConfigurationError) as caught:
            CreditLedger.connect(uri, database="app", config=config())
        check_error(caught.value)
        assert not contains_secret("".join(traceback.format_exception(caught.value)))
    settings = Settings(MONGODB_URI=f"mongodb://ann:{PASSWORD}@127.0.0.1/")
    assert not contains_secret(f"{settings!r} {settings}")
    logged.check()


# --- What is shown of an object -------------------------------------------------------------------


def fields_of(kind: type[Any]) -> dict[str, Any]:
    """Return values for a dataclass's fields, with a secret in each that may hold one."""
    secrets = {
        "metadata": METADATA,
        "key": WORD,
        "idempotency_key": WORD,
        "items": (METADATA,),  # of a page
        **dict.fromkeys(("credits", "held", "overdraft"), 0),  # of a user, who sums them up
    }
    return {f.name: secrets.get(f.name) for f in dataclasses.fields(kind) if f.init}


PUBLIC = [kind for _, kind in inspect.getmembers(credit_mongo, inspect.isclass)]
DATACLASSES = [kind for kind in PUBLIC if dataclasses.is_dataclass(kind)]
REQUESTS = [operation.request_type for operation in OPERATIONS.values()]
DOCUMENTS = credit_documents(CollectionNames())


def test_the_walk_finds_what_holds_metadata() -> None:
    """Otherwise the tests below could look at nothing."""
    holders = {kind for kind in DATACLASSES if "metadata" in fields_of(kind)}
    operations = {ChargeResult, RefundResult, GrantResult, RevokeResult, OverdraftResult}
    assert holders == operations | {Hold, CaptureResult, Transaction, AuditLog}
    assert len(REQUESTS) > 12


@pytest.mark.parametrize("kind", [*DATACLASSES, *REQUESTS], ids=lambda kind: kind.__name__)
def test_no_result_and_no_request_shows_a_key_or_metadata(kind: type[Any]) -> None:
    """Requests and results end up in logs, tracebacks with locals, and error trackers."""
    shown = kind(**fields_of(kind))
    assert not contains_secret(f"{shown!r} {shown} {[shown]}")


@pytest.mark.parametrize("kind", DOCUMENTS, ids=lambda kind: kind.__name__)
def test_no_document_shows_a_key_or_metadata(kind: type[Any]) -> None:
    """This holds for the documents that an application reads with Beanie."""
    secrets = {
        "metadata": METADATA,
        "idempotency_key": WORD,
        "result": {"metadata": METADATA},
    }
    values = {name: secrets.get(name) for name in kind.model_fields}
    if "fingerprint" in kind.model_fields:
        values["id"] = WORD
    shown = kind.model_construct(**values)
    assert not contains_secret(f"{shown!r} {shown} {[shown]}")
