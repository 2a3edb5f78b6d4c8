"""The ledger: it takes arguments and returns results. ``core`` decides, ``engine`` writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bson import ObjectId
from bson.errors import BSONError
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError

from credit_mongo.config import LONGEST_TTL_SECONDS, CreditConfig
from credit_mongo.core.decision import Request
from credit_mongo.core.extras import BASE_PRIORITY, MAX_PRIORITY
from credit_mongo.core.holds import OVERAGES, TIMEOUTS, HoldStatus, Overage, Timeout, check_ttl
from credit_mongo.core.operations.capture_hold import CaptureHoldRequest, CaptureResult
from credit_mongo.core.operations.charge import ChargeRequest, ChargeResult
from credit_mongo.core.operations.create_user import CreateUserRequest
from credit_mongo.core.operations.downgrade_tier import DowngradeTierRequest
from credit_mongo.core.operations.extend_hold import ExtendHoldRequest
from credit_mongo.core.operations.grant import GrantRequest, GrantResult
from credit_mongo.core.operations.hold_results import Hold, hold_of
from credit_mongo.core.operations.place_hold import PlaceHoldRequest
from credit_mongo.core.operations.refund import RefundRequest, RefundResult
from credit_mongo.core.operations.release_hold import ReleaseHoldRequest
from credit_mongo.core.operations.renew_tier import RenewTierRequest
from credit_mongo.core.operations.revoke import RevokeRequest, RevokeResult
from credit_mongo.core.operations.set_overdraft import OverdraftResult, SetOverdraftRequest
from credit_mongo.core.operations.tier_change import TierChangeResult
from credit_mongo.core.operations.upgrade_tier import UpgradeTierRequest
from credit_mongo.core.pricing import in_credits
from credit_mongo.core.results import Erasure, Quote, User, user_of
from credit_mongo.core.values import (
    KEEP,
    Keep,
    check_amount,
    check_flag,
    check_identifier,
    check_moment,
    check_one_of,
    check_optional,
    check_seconds,
    check_whole_number,
    to_milliseconds,
)
from credit_mongo.core.variables import exact_variables
from credit_mongo.drivers import AnyDatabase, AnySession
from credit_mongo.engine.commit import Committer
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.failures import as_storage_error
from credit_mongo.engine.lanes import Lanes
from credit_mongo.engine.observer import Observer, observed, tell_by
from credit_mongo.engine.open_holds import OpenHold, OpenHolds
from credit_mongo.engine.opening import Opening
from credit_mongo.engine.session_reaper import SessionReaper
from credit_mongo.engine.sessions import ApplicationSessions
from credit_mongo.engine.turns import Turns, TurnTaker
from credit_mongo.errors import (
    ConfigurationError,
    CreditError,
    InvalidRequestError,
    LedgerBusyError,
    StorageError,
)
from credit_mongo.maintenance.ledger_methods import IndexReport, ensure_all, erase
from credit_mongo.storage.clocks import CheckedClock, Clock
from credit_mongo.storage.connection import check_replica_set, connect
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.holds import HOLD_STATUSES
from credit_mongo.storage.latest_write import LatestWrite
from credit_mongo.storage.numbers import to_object_id
from credit_mongo.storage.pages import AuditPage, HistoryPage
from credit_mongo.storage.reads import MAX_HOLDS_READ, History
from credit_mongo.storage.round_trip import shortest_round_trip
from credit_mongo.storage.rows import copy_metadata
from credit_mongo.storage.settings import LedgerSettings
from credit_mongo.storage.unit_of_work import Store
from credit_mongo.storage.unreachable import not_in_time

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CreditLedger"]

# How long a ledger that could not open waits for its client to close.
_QUICK_CLOSE_SECONDS = 0.2
# How long a closed ledger waits for driver calls that outlived their deadline. The driver checks
# twice a second whether its client was closed.
_LATE_CALLS_SECONDS = 1.0
# The users of so many holds are remembered, so that most calls need not look them up.
_MOST_OWNERS = 10_000
_R = TypeVar("_R")
_P = ParamSpec("_P")


def _now() -> datetime:
    return to_milliseconds(datetime.now(timezone.utc))


def _checked(clock: Clock) -> Clock:
    def read() -> datetime:
        try:
            return check_moment("clock", clock())
        except InvalidRequestError as error:
            raise ConfigurationError("clock", error.reason) from None
        except Exception as error:
            raise ConfigurationError("clock", f"raised {type(error).__name__}") from error

    return read


def _check_config(config: object) -> None:
    if not isinstance(config, CreditConfig):
        kind = type(config).__name__
        raise ConfigurationError("", f"config must be a CreditConfig, not {kind}")


def _check_expiry(value: object) -> datetime | None:
    return check_optional(check_moment, "membership_expires_at", value)


def _check_transaction_id(field: str, value: object) -> str:
    # In the form that is stored: callers may write the hexadecimal digits in capitals.
    return str(to_object_id(check_identifier(field, value)))


class CreditLedger:
    """Keeps the credits of an application's users in MongoDB.

    Every operation takes effect completely or not at all, and ends within the configuration's
    ``operation_timeout_seconds``. A call repeated with the same ``idempotency_key`` returns the
    first call's result and has no second effect, as long as the ledger remembers the key
    (``idempotency.ttl_seconds``, a day by default). With ``idempotency_ttl``, a call says for its
    own key how many seconds that is: 1 second to 366 days, counted from the call that took effect.
    Repeats need not give it, and don't prolong it.

    Amounts and balances are ``int``, in the smallest unit. A datetime argument needs a time zone;
    the ledger keeps it in UTC, to the millisecond. User ids, actions, tiers and idempotency keys
    are ``str`` of 1 to 255 characters, without control characters. ``metadata`` is a mapping with
    string keys that takes at most 16 KiB as BSON and nests at most 100 levels deep.

    Besides the errors that its docstring names, any method can raise InvalidRequestError, and any
    that reaches the database StorageError (with its kinds LedgerBusyError, ReplicaSetRequiredError,
    ClockSkewError and AccountDataError): nothing was written then, and the call can be repeated.
    One that writes can also raise CommitOutcomeUnknownError: the operation may have happened.
    Repeat it with the same idempotency key, which settles it; without a key, look into the history
    before repeating it.

    With ``session``, an operation becomes part of the application's own transaction. It takes
    effect when the application commits, and the ledger doesn't retry it. A refused operation raises
    its error and leaves the transaction usable. The ledger writes the refusal's audit row outside
    the transaction, so the row stays even if the application aborts.

    If such a call ends in any other way (it is cancelled, its deadline passes, the database fails),
    the ledger aborts the transaction. The commit and later calls in this transaction raise
    TransactionAbortedError. PyMongo's ``with_transaction`` runs the transaction again if the
    failure may pass. The session itself stays usable.

    The write concern of the application's transaction decides how durable the operation is.
    MongoDB's default is ``majority``. After a commit with ``w=1``, the ledger's reads still show
    the committed data: they wait until a majority of the members has it.
    """

    def __init__(
        self,
        database: AnyDatabase,
        config: CreditConfig,
        *,
        clock: Clock | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Create a ledger on a database of the application's client.

        The client is PyMongo's AsyncMongoClient or Motor's AsyncIOMotorClient. The ledger never
        closes it.

        The ledger takes the time from this machine's clock. If that differs from the server's
        clock by more than the configuration's ``max_clock_skew_seconds``, operations raise
        ClockSkewError.

        ``clock`` is for tests: a function that returns the time, with a time zone. It may differ
        from the server's clock by months, because the ledger doesn't compare the two. If a user's
        last transaction is dated after ``clock``, the user's next operation takes that later date.

        ``observer`` is a function that the ledger calls with events, for metrics: see
        `credit_mongo.engine.observer`.

        Raises ConfigurationError if ``config`` is not a CreditConfig or ``observer`` no function.
        """
        _check_config(config)
        self._tell = tell_by(observer)
        self._config = config
        self._database = own = LedgerDatabase.of(database, config.collections, config.users)
        skew = timedelta(seconds=config.max_clock_skew_seconds) if clock is None else None
        # The clocks of two processes may be wrong by ``skew`` in opposite directions.
        gap = None if skew is None else 2 * skew
        # By which keys live longer, so that a process with a fast clock forgets none too early.
        self._key_gap = gap or timedelta()
        self._policy = replace(config.policy, max_lead=gap)
        self._owners_of_holds: OrderedDict[str, str] = OrderedDict()
        self._clock = CheckedClock(own, _checked(_now if clock is None else clock), skew)
        self._owns_client = False
        self._users = own.users
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        store = Store(
            own,
            audits=config.audit.enabled,
            remembers_for=timedelta(seconds=config.idempotency.ttl_seconds) + self._key_gap,
        )
        turns = Turns(timeout_seconds=config.operation_timeout_seconds)
        latest_write = LatestWrite(own.client)
        self._deadlines = Deadlines(own.client)
        reaper = SessionReaper(own.client, self._deadlines, self._tell)
        self._committer = Committer(
            own.client,
            store,
            self._policy,
            retry=config.retry,
            turn_taker=TurnTaker(turns, own, tell=self._tell),
            latest_write=latest_write,
            deadlines=self._deadlines,
            reaper=reaper,
            clock=self._clock,
            tell=self._tell,
        )
        self._lanes = Lanes(
            self._committer.commit,
            self._committer.commit_patiently,
            turns,
            timeout_seconds=config.operation_timeout_seconds,
            round_trip_seconds=lambda: shortest_round_trip(own.client),
            tell=self._tell,
        )
        waits = config.on_busy == "wait"
        self._enqueue = self._lanes.submit_when_there_is_room if waits else self._lanes.submit
        self._history = History(own, self._policy, latest_write, self._clock)
        self._sessions = ApplicationSessions(
            own.client,
            deadlines=self._deadlines,
            reaper=reaper,
            latest_write=latest_write,
            timeout_seconds=config.operation_timeout_seconds,
        )
        self._opening = Opening(
            own,
            LedgerSettings.of(config),
            self._deadlines,
            timeout_seconds=config.operation_timeout_seconds,
        )
        self._open_holds = OpenHolds(
            self._policy,
            place=self._place,
            submit=self._submit_of_open_hold,
            find=lambda hold_id: self._read(None, self._history.hold, hold_id, None),
            timeout_seconds=config.operation_timeout_seconds,
            gives_keys=config.idempotency.enabled,
        )

    @classmethod
    def connect(
        cls,
        uri: str,
        *,
        database: str,
        config: CreditConfig,
        clock: Clock | None = None,
        observer: Observer | None = None,
    ) -> CreditLedger:
        """Create a ledger with a client of its own. Closing the ledger closes the client.

        ``uri`` is a MongoDB connection string, ``database`` the name of the database. ``clock``
        (for tests) and ``observer`` are those of the constructor.

        Raises ConfigurationError as the constructor does, and if the URI is invalid or contains an
        option that MongoDB's driver would ignore.
        """
        _check_config(config)
        tell_by(observer)  # before there is a client
        own = connect(uri, database, config.operation_timeout_seconds)
        ledger = cls(own, config, clock=clock, observer=observer)
        ledger._owns_client = True
        return ledger

    def __repr__(self) -> str:
        """Show where the credits are and whether the ledger is open, but nothing of the URI."""
        names = self._config.collections
        return (
            f"<CreditLedger database={self._database.name!r} users={names.users!r} "
            f"transactions={names.transactions!r} decimal_places={self._config.decimal_places} "
            f"{'closed' if self._is_closed else 'open'}>"
        )

    async def __aenter__(self) -> Self:
        """Check that the server is a replica set, and compare the settings with the database's.

        Raises ReplicaSetRequiredError; ConfigurationError if the ledger in the database was set up
        with other settings; and StorageError if no server answers in time. A ledger used without
        ``async with`` compares the settings before its first operation.
        """
        try:
            await self._run_in_time(None, self._open)
        except BaseException:
            # No operation has begun, and the deadline may have passed: don't wait for the client.
            await self._close_client(_QUICK_CLOSE_SECONDS)
            raise
        return self

    async def _open(self) -> None:
        await check_replica_set(self._database)
        await self._opening.check()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop accepting operations, finish the accepted ones, and close the ledger's own client.

        Holds whose ``async with`` block still runs are settled as if it had been interrupted.
        Finishes within three times ``operation_timeout_seconds``. A client that the application
        passed in stays open. Later calls raise LedgerBusyError.
        """
        self._is_closed = True
        seconds = self._config.operation_timeout_seconds
        await self._open_holds.close(seconds)
        await self._lanes.close()
        await self._committer.close(seconds)
        await self._close_client(seconds)
        await self._deadlines.close(min(seconds, _LATE_CALLS_SECONDS))

    async def _close_client(self, seconds: float) -> None:
        if self._owns_client:
            # The driver would wait half a minute for a frozen server to end its sessions. On the
            # second call it has no sessions left, and just closes its connections.
            for _ in range(2):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._database.client.close(), seconds / 2)
                    break

    # Users

    async def create_user(
        self,
        user_id: str,
        *,
        credits: int = 0,  # noqa: A002 - the word of the field
        membership_tier: str | None = None,
        membership_expires_at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        session: AnySession | None = None,
    ) -> User:
        """Open an account. The opening ``credits`` are its first transaction.

        ``credits`` is 0 to 2**53 - 1 smallest units. ``membership_expires_at`` must lie in the
        future; None means no expiry.

        If the application already has a document for the user, without credits, the ledger opens
        the account on that document. Its other fields stay, and so does its tier unless
        ``membership_tier`` gives another.

        Raises UserExistsError if the user has an account, UndefinedTierError if the configuration
        doesn't define ``membership_tier``, and IdempotencyConflictError.
        """
        request = CreateUserRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            credits=check_amount("credits", credits, least=0),
            membership_tier=check_optional(check_identifier, "membership_tier", membership_tier),
            membership_expires_at=check_optional(
                check_moment, "membership_expires_at", membership_expires_at
            ),
        )
        return await self._submit(request, session)

    async def get_user(self, user_id: str, *, session: AnySession | None = None) -> User:
        """Return a user's account as of now: balance, lots, what is available, tier.

        Amounts are in smallest units. Lots and holds that have ended count as ended. The call
        writes nothing. Raises UserNotFoundError.
        """
        user_id = self._users.check_id("user_id", user_id)
        own = self._database.session(session)
        return user_of(await self._read(own, self._history.account, user_id, own))

    async def get_balance(self, user_id: str, *, session: AnySession | None = None) -> int:
        """Return a user's balance as of now, in smallest units. Raises UserNotFoundError.

        Part of it may be held: ``get_user`` tells what is available.
        """
        return (await self.get_user(user_id, session=session)).credits

    async def delete_user(self, user_id: str, *, requested_by: str | None = None) -> Erasure:
        """Erase a user for good: account, transactions, audit logs and idempotency records.

        Archived rows are erased too, except those archived to files. As soon as the erasure has
        begun, no operation finds the user. If somebody opens an account with the same id before the
        erasure ends, that new account stays.

        The ledger erases at most 1,000 rows at a time. ``operation_timeout_seconds`` limits each
        such step, not the whole call. If the call fails or the process dies, call it again to
        complete the erasure.

        A record of the erasure stays: how many rows, when, and who asked for it (``requested_by``,
        1 to 255 characters). The database role for normal operations isn't allowed to erase: use
        the role for erasing.

        Raises UserNotFoundError, and JobTimeoutError if a step does not end in time.
        """
        await self._read(None, self._opening.check)
        return await erase(
            self._database,
            user_id,
            requested_by=requested_by,
            step_seconds=self._config.operation_timeout_seconds,
            clock=self._clock,
        )

    # Credits

    async def charge(
        self,
        user_id: str,
        action: str,
        *,
        amount: int | None = None,
        variables: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> ChargeResult:
        """Take the price of ``action`` for the user's tier, or ``amount`` units if given.

        ``amount`` is 1 to 2**53 - 1 smallest units. The action then needs no price, but the user
        still needs access to it. ``amount`` and ``variables`` cannot be combined.

        ``variables`` are the numbers for a price formula, by name: at most 200, within ±10**18.
        ``int``, ``float``, ``Decimal``, ``Fraction`` and NumPy's numbers will do. The formula
        ignores names that it doesn't use, whatever their values, so you can pass a provider's
        whole usage object. If a variable that it uses isn't a number, the call raises
        InvalidRequestError with the variable's name. A formula that needs variables and gets none
        falls back to the action's ``default`` price if that is a fixed one.

        Raises UserNotFoundError, UndefinedActionError, UndefinedTierError, MembershipRequiredError,
        MissingVariableError, FormulaEvaluationError, InsufficientCreditsError and
        IdempotencyConflictError.
        """
        if amount is not None and variables is not None:
            raise InvalidRequestError("amount", "cannot be combined with variables: give only one")
        request = ChargeRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            action=check_identifier("action", action),
            amount=None if amount is None else check_amount("amount", amount),
            variables=None if variables is None else exact_variables(variables),
        )
        return await self._submit(request, session)

    async def refund(
        self,
        user_id: str,
        amount: int,
        *,
        action: str,
        transaction_id: str | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> RefundResult:
        """Give back ``amount`` units (1 to 2**53 - 1).

        ``transaction_id`` links the refund to that charge of the user: all refunds of a charge
        together never exceed it. Without it, the refund has no limit but the largest balance,
        2**63 - 1 units.

        Raises UserNotFoundError, TransactionNotFoundError if the user has no such charge,
        RefundExceedsChargeError, and IdempotencyConflictError.
        """
        request = RefundRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            amount=check_amount("amount", amount),
            action=check_identifier("action", action),
            charge_id=check_optional(_check_transaction_id, "transaction_id", transaction_id),
        )
        return await self._submit(request, session)

    async def grant(
        self,
        user_id: str,
        amount: int,
        *,
        action: str,
        expires_at: datetime | None = None,
        priority: int = BASE_PRIORITY,
        source: str | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> GrantResult:
        """Give the user ``amount`` units (1 to 2**53 - 1), up to a balance of 2**63 - 1.

        With an end (``expires_at``, in the future), a ``priority`` (0 to 100) other than 50, or a
        ``source`` (1 to 255 characters), the credits are a lot of their own. They are used by the
        lower priority number first, then by the sooner end, then by age. The rest of the balance
        has the priority 50 and no end. Lots with equal priority, end and source are one. From
        ``expires_at`` on, what is left of the lot is gone. A debt is repaid first.

        Raises UserNotFoundError, AccountLimitError if the user has 64 lots, and
        IdempotencyConflictError.
        """
        request = GrantRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            amount=check_amount("amount", amount),
            action=check_identifier("action", action),
            expires_at=check_optional(check_moment, "expires_at", expires_at),
            priority=check_whole_number("priority", priority, 0, MAX_PRIORITY),
            source=check_optional(check_identifier, "source", source),
        )
        return await self._submit(request, session)

    async def revoke(
        self,
        grant_transaction_id: str,
        amount: int | None = None,
        *,
        action: str,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> RevokeResult:
        """Take back a grant, say after a chargeback: ``amount`` units, or all that is left of it.

        They are taken from the lot that the grant went into, then from the balance outside of lots,
        then as a debt, as far as the overdraft allows. What holds keep is not taken. What could not
        be taken is the result's ``uncollected``, and counts as revoked.

        Raises TransactionNotFoundError if there is no such grant, RevokeExceedsGrantError if less
        is left of it, and IdempotencyConflictError.
        """
        grant_id = _check_transaction_id("grant_transaction_id", grant_transaction_id)
        amount = None if amount is None else check_amount("amount", amount)
        action = check_identifier("action", action)
        own = self._database.session(session)
        user_id = await self._read(own, self._history.owner_of_grant, grant_id, own)
        request = RevokeRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            grant_id=grant_id,
            amount=amount,
            action=action,
        )
        return await self._submit(request, session)

    async def set_overdraft(
        self,
        user_id: str,
        limit: int,
        *,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> OverdraftResult:
        """Let the user's balance go ``limit`` units (0 to 2**53 - 1) below zero.

        Grants repay a debt first. A limit below the present debt is allowed: charges are then
        refused until enough is repaid.

        Raises UserNotFoundError and IdempotencyConflictError.
        """
        request = SetOverdraftRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            limit=check_amount("limit", limit, least=0),
        )
        return await self._submit(request, session)

    # Holds

    def hold(
        self,
        user_id: str,
        action: str,
        *,
        amount: int | None = None,
        variables: Mapping[str, object] | None = None,
        ttl: float = 60.0,
        overage: Overage = "available",
        on_timeout: Timeout = "settle",
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> OpenHold:
        """Hold credits while a block runs: ``async with ledger.hold(…) as hold``.

        ``hold.use(amount=…)`` or ``hold.use(variables=…)`` notes what was used so far: a total,
        noted locally. At the end of the block, by an error or a cancellation too, the ledger
        captures what was used and releases the rest, once. If ``use`` was never called, the end of
        the block captures the whole hold, and an error or a cancellation releases it.
        ``hold.result`` is then the CaptureResult, or None after a release.

        While the block runs, the ledger extends the hold every third of ``ttl`` and reports what
        was used. If the process dies, the hold ends by itself, as ``on_timeout`` says.

        The arguments are those of ``place_hold``. With an ``idempotency_key`` whose hold an earlier
        call has placed, the block is not run: its beginning raises RequestInProgressError while
        that hold is active, and HoldClosedError after that. Otherwise the beginning raises the
        errors of ``place_hold``. After CommitOutcomeUnknownError, the ledger releases the hold if
        it was placed.

        The end of the block waits for the settlement, at most twice
        ``operation_timeout_seconds``. If the database doesn't answer, it raises StorageError or
        CommitOutcomeUnknownError, unless the block has raised an error of its own. The ledger then
        keeps trying, until ``holds.late_seconds`` of the configuration are over. The end raises
        HoldClosedError if the hold was settled by another call meanwhile, so that what was used
        can't be captured, and LedgerBusyError if the ledger was closed before the block ended.
        """
        request = self._hold_request(
            action,
            amount=amount,
            variables=variables,
            ttl=ttl,
            overage=overage,
            on_timeout=on_timeout,
            common=self._common(user_id, idempotency_key, idempotency_ttl, metadata),
        )
        return OpenHold(self._open_holds, request)

    async def place_hold(
        self,
        user_id: str,
        action: str,
        *,
        amount: int | None = None,
        variables: Mapping[str, object] | None = None,
        ttl: float = 60.0,
        overage: Overage = "available",
        on_timeout: Timeout = "settle",
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> Hold:
        """Keep the price of ``action``, or ``amount`` units, for work whose cost is known later.

        Nobody else can spend what is held. ``capture_hold`` takes what the work cost and
        ``release_hold`` gives up the hold. If neither happens within ``ttl`` seconds (1 second to
        30 days), the hold ends. ``on_timeout`` says what happens then: ``"settle"`` charges what
        ``extend_hold`` last reported as used, ``"release"`` charges nothing.

        ``overage`` is for work that costs more than what is held. ``"available"`` takes what the
        user has and no hold keeps, ``"debt"`` goes on into the overdraft, and ``"reject"`` refuses
        the capture. The price is that of this moment, also if the tier changes later.

        Amounts and variables are those of ``charge``, and ``amount`` and ``variables`` cannot be
        combined. Raises the errors of ``charge``, and AccountLimitError if the user has 256 active
        holds.
        """
        request = self._hold_request(
            action,
            amount=amount,
            variables=variables,
            ttl=ttl,
            overage=overage,
            on_timeout=on_timeout,
            common=self._common(user_id, idempotency_key, idempotency_ttl, metadata),
        )
        return await self._place(request, session)

    async def extend_hold(
        self,
        hold_id: str,
        *,
        ttl: float | None = None,
        amount: int | None = None,
        used: int | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> Hold:
        """Let an active hold live ``ttl`` seconds from now, hold ``amount`` units, report ``used``.

        Each that is None stays as it is. ``amount`` and ``used`` are totals, what was captured
        included. The end never moves back. ``used`` cannot be less than was reported before.

        Raises HoldNotFoundError, HoldClosedError, InsufficientCreditsError if the user has not
        enough for a larger ``amount``, and IdempotencyConflictError.
        """
        longer = None if ttl is None else check_ttl(ttl)
        amount = None if amount is None else check_amount("amount", amount, least=0)
        used = None if used is None else check_amount("used", used, least=0)
        hold_id, user_id = await self._owned_hold(hold_id, session)
        request = ExtendHoldRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            hold_id=hold_id,
            ttl=longer,
            amount=amount,
            used=used,
        )
        return await self._submit(request, session)

    async def capture_hold(
        self,
        hold_id: str,
        *,
        amount: int | None = None,
        variables: Mapping[str, object] | None = None,
        final: bool = True,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> CaptureResult:
        """Take what the work cost: ``amount`` units, or the hold's price for the variables.

        Without both, the whole hold is captured. The amount is the **total** of all captures of the
        hold: repeating a capture changes nothing, and a smaller one is refused. A ``final`` capture
        ends the hold and releases the rest.

        After the hold's end, a capture is charged as far as it goes beyond what was charged then
        (``late`` in the result), until ``holds.late_seconds`` of the configuration are over.

        Raises HoldNotFoundError, HoldClosedError, HoldExceededError if the hold's overage is
        ``"reject"`` and it holds less, InvalidRequestError, the errors of a formula, and
        IdempotencyConflictError.
        """
        if amount is not None and variables is not None:
            raise InvalidRequestError("amount", "cannot be combined with variables: give only one")
        amount = None if amount is None else check_amount("amount", amount, least=0)
        exact = None if variables is None else exact_variables(variables)
        is_final = check_flag("final", final)
        hold_id, user_id = await self._owned_hold(hold_id, session)
        request = CaptureHoldRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            hold_id=hold_id,
            amount=amount,
            variables=exact,
            is_final=is_final,
        )
        return await self._submit(request, session)

    async def release_hold(
        self,
        hold_id: str,
        *,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> Hold:
        """End an active hold and take nothing more. Releasing it again changes nothing.

        Raises HoldNotFoundError, HoldClosedError if the hold was captured or has expired, and
        IdempotencyConflictError.
        """
        hold_id, user_id = await self._owned_hold(hold_id, session)
        request = ReleaseHoldRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata), hold_id=hold_id
        )
        return await self._submit(request, session)

    async def get_hold(self, hold_id: str, *, session: AnySession | None = None) -> Hold:
        """Return a hold as of now. Raises HoldNotFoundError."""
        hold_id = _check_transaction_id("hold_id", hold_id)
        own = self._database.session(session)
        return hold_of(await self._read(own, self._history.hold, hold_id, own))

    async def get_holds(
        self,
        user_id: str,
        *,
        status: HoldStatus | None = None,
        limit: int = 50,
        session: AnySession | None = None,
    ) -> tuple[Hold, ...]:
        """Return the user's holds as of now, the newest first: all, or those with this status.

        ``status`` is "active", "captured", "released" or "expired". ``limit`` is 1 to 1,000 holds.

        Raises UserNotFoundError.
        """
        user_id = self._users.check_id("user_id", user_id)
        if status is not None:
            status = check_one_of("status", status, HOLD_STATUSES)
        limit = check_whole_number("limit", limit, 1, MAX_HOLDS_READ)
        own = self._database.session(session)
        found = await self._read(own, self._history.holds, user_id, status, limit, own)
        return tuple(hold_of(record) for record in found)

    def _hold_request(
        self,
        action: object,
        *,
        amount: object,
        variables: Mapping[str, object] | None,
        ttl: object,
        overage: object,
        on_timeout: object,
        common: Mapping[str, Any],
    ) -> PlaceHoldRequest:
        if amount is not None and variables is not None:
            raise InvalidRequestError("amount", "cannot be combined with variables: give only one")
        return PlaceHoldRequest(
            **common,
            action=check_identifier("action", action),
            amount=None if amount is None else check_amount("amount", amount),
            variables=None if variables is None else exact_variables(variables),
            ttl=check_ttl(ttl),
            overage=check_one_of("overage", overage, OVERAGES),
            on_timeout=check_one_of("on_timeout", on_timeout, TIMEOUTS),
        )

    async def _place(self, request: PlaceHoldRequest, session: AnySession | None = None) -> Hold:
        hold = await self._submit(request, session)
        self._remember_owner(hold.hold_id, hold.user_id)
        return hold

    def _submit_of_open_hold(
        self, request: Request[_R], *, spent_seconds: float = 0.0
    ) -> Awaitable[_R]:
        """Submit a heartbeat or a settlement, also while the ledger closes."""
        if self._tell is None:
            return self._enqueue(request, spent_seconds=spent_seconds)
        return observed(
            self._tell,
            request.operation,
            lambda: self._enqueue(request, spent_seconds=spent_seconds),
        )

    async def _owned_hold(self, hold_id: object, session: AnySession | None) -> tuple[str, str]:
        """Return the id in the form that is stored, and the hold's user, who never changes."""
        hold_id = _check_transaction_id("hold_id", hold_id)
        user_id = self._owners_of_holds.get(hold_id)
        if user_id is None:
            own = self._database.session(session)
            user_id = await self._read(own, self._history.owner_of_hold, hold_id, own)
            self._remember_owner(hold_id, user_id)
        return hold_id, user_id

    def _remember_owner(self, hold_id: str, user_id: str) -> None:
        self._owners_of_holds[hold_id] = user_id
        if len(self._owners_of_holds) > _MOST_OWNERS:
            self._owners_of_holds.popitem(last=False)

    # Tiers

    async def upgrade_tier(
        self,
        user_id: str,
        target_tier: str,
        *,
        membership_expires_at: datetime | Keep | None = KEEP,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> TierChangeResult:
        """Move the user to a higher tier and set the base of the balance by that tier's cap.

        ``membership.on_change`` of the configuration says how. By default the base becomes the cap,
        less a debt, and what it had beyond the cap is lost. Lots and what holds keep stay.

        A datetime in ``membership_expires_at`` is the new expiry, which must lie in the future;
        None means no expiry. ``KEEP`` keeps an expiry in the future and clears one that has passed.

        Raises UserNotFoundError, UndefinedTierError, InvalidTierChangeError if the target isn't
        higher than the current tier, and IdempotencyConflictError.
        """
        expires_at = membership_expires_at
        request = UpgradeTierRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            target_tier=check_identifier("target_tier", target_tier),
            membership_expires_at=expires_at
            if isinstance(expires_at, Keep)
            else _check_expiry(expires_at),
        )
        return await self._submit(request, session)

    async def downgrade_tier(
        self,
        user_id: str,
        target_tier: str,
        *,
        clear_expiration: bool = False,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> TierChangeResult:
        """Move the user to a lower tier and set the base of the balance as ``upgrade_tier`` does.

        The membership keeps its expiry unless ``clear_expiration`` removes it.

        Raises UserNotFoundError, UndefinedTierError, InvalidTierChangeError if the target isn't
        lower than the current tier, and IdempotencyConflictError.
        """
        request = DowngradeTierRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            target_tier=check_identifier("target_tier", target_tier),
            clear_expiration=check_flag("clear_expiration", clear_expiration),
        )
        return await self._submit(request, session)

    async def renew_tier(
        self,
        user_id: str,
        *,
        membership_expires_at: datetime | None,
        refill: bool = True,
        allow_earlier: bool = False,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> TierChangeResult:
        """Give the user's tier a new expiry and, with ``refill``, set the base of the balance.

        The base is set by the tier's cap, as ``upgrade_tier`` does. ``membership_expires_at`` must
        lie in the future; None means no expiry. An expiry before the current one is refused, so
        that a late webhook changes nothing. ``allow_earlier=True`` permits it. A membership without
        an expiry accepts any.

        Raises UserNotFoundError, UndefinedTierError, InvalidTierChangeError if the user has no tier
        or the new expiry is earlier, and IdempotencyConflictError.
        """
        request = RenewTierRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            membership_expires_at=check_optional(
                check_moment, "membership_expires_at", membership_expires_at
            ),
            refill=check_flag("refill", refill),
            allow_earlier=check_flag("allow_earlier", allow_earlier),
        )
        return await self._submit(request, session)

    async def validate_access(
        self, user_id: str, action: str, *, session: AnySession | None = None
    ) -> bool:
        """Return True if the user's tier has access to the action, or else raise.

        The balance doesn't matter. Raises UserNotFoundError, UndefinedActionError,
        UndefinedTierError, and MembershipRequiredError if the tier has no access.
        """
        user_id = self._users.check_id("user_id", user_id)
        action = check_identifier("action", action)
        own = self._database.session(session)
        account, now = await self._read(own, self._history.account_now, user_id, own)
        self._policy.require_access(account, action, now)
        return True

    async def quote(
        self,
        user_id: str,
        action: str,
        *,
        variables: Mapping[str, object] | None = None,
    ) -> Quote:
        """Return what the action would cost the user now. Writes nothing.

        ``variables`` are those of ``charge``. The call raises the same errors as ``charge``, except
        InsufficientCreditsError: the result's ``affordable`` says whether the balance is enough.
        """
        user_id = self._users.check_id("user_id", user_id)
        action = check_identifier("action", action)
        exact = None if variables is None else exact_variables(variables)
        account, now = await self._read(None, self._history.account_now, user_id, None)
        return self._policy.quote(account, action, exact, now)

    # Records

    async def get_history(
        self,
        user_id: str,
        *,
        limit: int = 50,
        offset: int = 0,
        cursor: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        action: str | None = None,
        include_archived: bool = False,
        session: AnySession | None = None,
    ) -> HistoryPage:
        """Return a page of the user's transactions, newest first.

        ``start_date`` is included, ``end_date`` is not. ``limit`` is 1 to 1,000 rows, ``offset`` 0
        to 100,000 rows. ``cursor`` takes a page's ``next_cursor`` and continues exactly where that
        page ended, whatever was written since; it cannot be combined with an ``offset``.

        ``include_archived`` also reads the archive collections, but not what was archived to files.

        Raises UserNotFoundError.
        """
        own = self._database.session(session)
        return await self._read(
            own,
            self._history.transactions,
            user_id,
            limit=limit,
            offset=offset,
            cursor=cursor,
            start_date=start_date,
            end_date=end_date,
            action=action,
            include_archived=include_archived,
            session=own,
        )

    async def get_audit_log(
        self,
        user_id: str,
        *,
        limit: int = 50,
        offset: int = 0,
        cursor: str | None = None,
        status: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        action: str | None = None,
        include_archived: bool = False,
        session: AnySession | None = None,
    ) -> AuditPage:
        """Return a page of the attempted operations on a user, newest first.

        ``status`` is "success" or "failed"; None returns both. The log also has the attempts on
        users who don't exist. All other arguments are those of ``get_history``.
        """
        own = self._database.session(session)
        return await self._read(
            own,
            self._history.audit_logs,
            user_id,
            limit=limit,
            offset=offset,
            cursor=cursor,
            status=status,
            start_date=start_date,
            end_date=end_date,
            action=action,
            include_archived=include_archived,
            session=own,
        )

    async def ensure_indexes(self) -> IndexReport:
        """Create the collections and indexes that are missing, and store the ledger's settings.

        Indexes that fit are kept, whatever their names. An index that conflicts doesn't raise: the
        report names it and says what to do. ``operation_timeout_seconds`` doesn't limit this call,
        because the server may need long to build an index on many rows.

        Raises ConfigurationError, and creates nothing, if the ledger in the database was set up
        with other settings.
        """
        self._check_open()
        config = self._config
        try:
            return await ensure_all(self._database, decimal_places=config.decimal_places)
        except (PyMongoError, BSONError) as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause

    def format(self, units: int) -> str:
        """Return an amount of smallest units as credits, for people to read.

        With ``decimal_places=2``, ``format(135_000)`` is ``"1,350.00"``. Raises InvalidRequestError
        if ``units`` is not an ``int``.
        """
        if isinstance(units, bool) or not isinstance(units, int):
            raise InvalidRequestError("units", f"must be an int, not {type(units).__name__}")
        return in_credits(int.__int__(units), self._config.decimal_places)

    # From the public methods to the engine

    def _check_open(self) -> None:
        """Raise LedgerBusyError if closed, ConfigurationError on another event loop."""
        if self._is_closed:
            raise LedgerBusyError("the ledger is closed: create a new one")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError(
                    "",
                    "the ledger belongs to the event loop that first used it: create a new ledger "
                    "for this loop, with a client of its own",
                )
            self._loop = loop

    def _common(
        self, user_id: object, key: object, key_ttl: object, metadata: object
    ) -> dict[str, Any]:
        key = check_optional(check_identifier, "idempotency_key", key)
        return {
            "user_id": self._users.check_id("user_id", user_id),
            "transaction_id": str(ObjectId()),
            "key": key if self._config.idempotency.enabled else None,
            "key_lifetime": None if key_ttl is None else self._lifetime(key, key_ttl),
            "metadata": copy_metadata(metadata),
        }

    def _lifetime(self, key: object, seconds: object) -> timedelta:
        """Return how long the ledger remembers a key whose call says so itself."""
        ttl = check_seconds("idempotency_ttl", seconds, least=1, most=LONGEST_TTL_SECONDS)
        if key is None:
            reason = "cannot be given without an idempotency_key"
            raise InvalidRequestError("idempotency_ttl", reason)
        return ttl + self._key_gap

    def _submit(self, request: Request[_R], session: AnySession | None) -> Awaitable[_R]:
        if self._tell is None:
            return self._submit_unobserved(request, session)
        return observed(
            self._tell, request.operation, lambda: self._submit_unobserved(request, session)
        )

    def _submit_unobserved(self, request: Request[_R], session: AnySession | None) -> Awaitable[_R]:
        self._check_open()
        own = self._database.session(session)
        if own is not None:
            return self._submit_in_session(request, own)
        return self._enqueue(request) if self._opening.is_done else self._submit_first(request)

    async def _submit_first(self, request: Request[_R]) -> _R:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._read(None, self._opening.check)
        return await self._enqueue(request, spent_seconds=loop.time() - began)

    async def _submit_in_session(self, request: Request[_R], session: AsyncClientSession) -> _R:
        try:
            outcome = await self._sessions.write(
                session, lambda: self._after_opening(self._committer.commit_in, request, session)
            )
        except (PyMongoError, BSONError) as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause
        if isinstance(outcome, CreditError):
            raise outcome
        return outcome

    def _after_opening(
        self,
        work: Callable[_P, Coroutine[Any, Any, _R]],
        /,
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> Coroutine[Any, Any, _R]:
        """Return the work, preceded by the check of the settings if that hasn't happened yet."""
        if self._opening.is_done:
            return work(*arguments, **options)

        async def open_and_work() -> _R:
            await self._opening.check()
            return await work(*arguments, **options)

        return open_and_work()

    async def _read(
        self,
        session: AsyncClientSession | None,
        read: Callable[_P, Coroutine[Any, Any, _R]],
        /,
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> _R:
        return await self._run_in_time(session, self._after_opening, read, *arguments, **options)

    async def _run_in_time(
        self,
        session: AsyncClientSession | None,
        read: Callable[_P, Coroutine[Any, Any, _R]],
        /,
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> _R:
        self._check_open()
        try:
            if session is not None:
                return await self._sessions.read(session, lambda: read(*arguments, **options))
            work = read(*arguments, **options)
            return await self._deadlines.keep(work, self._config.operation_timeout_seconds)
        except asyncio.TimeoutError as error:
            raise StorageError(not_in_time(self._database.client)) from error
        except (PyMongoError, BSONError) as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause
