"""The ledger: arguments in, results out. What happens in between is in ``core`` and ``engine``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bson import ObjectId
from bson.errors import BSONError
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError
from pymongo.read_preferences import ReadPreference

from credit_mongo.config import CreditConfig
from credit_mongo.core.decision import Request
from credit_mongo.core.operations.charge import ChargeRequest, ChargeResult
from credit_mongo.core.operations.create_user import CreateUserRequest
from credit_mongo.core.operations.downgrade_tier import DowngradeTierRequest
from credit_mongo.core.operations.grant import GrantRequest, GrantResult
from credit_mongo.core.operations.refund import RefundRequest, RefundResult
from credit_mongo.core.operations.renew_tier import RenewTierRequest
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
    check_optional,
    to_milliseconds,
)
from credit_mongo.core.variables import exact_variables
from credit_mongo.drivers import AnyDatabase, AnySession, as_database, as_session
from credit_mongo.engine.commit import Committer
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.failures import as_storage_error
from credit_mongo.engine.lanes import Lanes
from credit_mongo.engine.opening import Opening
from credit_mongo.engine.session_reaper import SessionReaper
from credit_mongo.engine.sessions import ApplicationSessions
from credit_mongo.engine.turns import Turns
from credit_mongo.errors import (
    ConfigurationError,
    CreditError,
    InvalidRequestError,
    LedgerBusyError,
    StorageError,
)
from credit_mongo.maintenance.ledger_methods import IndexReport, ensure_indexes, erase_user
from credit_mongo.storage.clocks import CheckedClock, Clock
from credit_mongo.storage.connection import check_replica_set, connect
from credit_mongo.storage.latest_write import LatestWrite
from credit_mongo.storage.pages import AuditPage, HistoryPage
from credit_mongo.storage.reads import History
from credit_mongo.storage.redaction import Unlogged
from credit_mongo.storage.rows import copy_metadata, to_object_id
from credit_mongo.storage.settings import LedgerSettings
from credit_mongo.storage.unit_of_work import Store
from credit_mongo.storage.unreachable import not_in_time
from credit_mongo.storage.users import StoredUsers

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CreditLedger"]

_HASTE_SECONDS = 0.2
# The driver looks whether its client was closed twice a second.
_LATE_SECONDS = 1.0
_R = TypeVar("_R")
_P = ParamSpec("_P")


def _now() -> datetime:
    return to_milliseconds(datetime.now(timezone.utc))


def _reading(clock: Clock) -> Clock:
    def read() -> datetime:
        try:
            return check_moment("clock", clock())
        except InvalidRequestError as error:
            raise ConfigurationError("clock", error.reason) from None

    return read


def _check_expiry(value: object) -> datetime | None:
    return check_optional(check_moment, "membership_expires_at", value)


def _check_transaction_id(field: str, value: object) -> str:
    # As it is stored: an id of the ledger's may be written in capitals.
    return str(to_object_id(check_identifier(field, value)))


class CreditLedger:
    """Keeps the credits of an application's users.

    All amounts are whole numbers of the smallest unit. Every operation takes effect wholly or not
    at all, ends within the configuration's ``operation_timeout_seconds``, and can be repeated with
    the same ``idempotency_key`` without a second effect for as long as keys are remembered.

    Besides the errors that its docstring names, any method can raise InvalidRequestError, and any
    that reaches the database StorageError (with its kinds LedgerBusyError, ReplicaSetRequiredError,
    ClockSkewError and AccountDataError): nothing was written then, and the call can be repeated.
    One that writes can also raise CommitOutcomeUnknownError: the operation may have happened.
    Repeat it with the same idempotency key, which settles it; without a key, look into the history
    before repeating it.

    With ``session``, an operation becomes part of the application's own transaction: it takes
    effect when the application commits, and retries are the application's. A refused operation
    raises and leaves the transaction usable; its audit row stays, whatever becomes of the rest.

    If such a call ends in any other way (it is cancelled, its deadline passes, the database fails),
    the transaction is aborted: the commit and later calls in it raise TransactionAbortedError.
    PyMongo's ``with_transaction`` repeats the transaction where the failure may pass. The session
    itself stays usable.

    The durability of the application's transaction is that of its own write concern; MongoDB's
    default is ``majority``. After a commit with ``w=1`` the ledger's reads still show what was
    committed: they wait until a majority has it.
    """

    def __init__(
        self,
        database: AnyDatabase,
        config: CreditConfig,
        *,
        clock: Clock | None = None,
    ) -> None:
        """A ledger on a database of the application's own client, which it never closes.

        The client is PyMongo's AsyncMongoClient, or Motor's AsyncIOMotorClient.

        Operations are decided at the time of this machine's clock, which may differ from the
        server's by the configuration's ``max_clock_skew_seconds``: beyond, they raise
        ClockSkewError. ``clock``, for tests, gives another time (with a time zone). It may lie
        months from the server's: nothing compares them, and time then follows a user's rows however
        far ahead they are.
        """
        if not isinstance(config, CreditConfig):
            raise ConfigurationError("", "config must be a CreditConfig")
        database = as_database(database)
        database = database.with_options(read_preference=ReadPreference.PRIMARY)
        self._config = config
        self._database = database
        # Two clocks may be off by as much in opposite directions.
        skew = timedelta(seconds=config.max_clock_skew_seconds) if clock is None else None
        apart = None if skew is None else 2 * skew
        self._policy = replace(config.policy, follows=apart)
        self._clock = CheckedClock(
            database.client, _reading(_now if clock is None else clock), skew
        )
        self._owns_client = False
        self._users = StoredUsers.of(config.users, database)
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        store = Store(
            database,
            config.collections,
            self._users,
            audits=config.audit.enabled,
            # So that each process remembers a key for as long as it should, whoever's clock is off.
            remembers_for=timedelta(seconds=config.idempotency.ttl_seconds)
            + (apart or timedelta()),
        )
        turns = Turns(timeout_seconds=config.operation_timeout_seconds)
        latest_write = LatestWrite(database.client)
        self._deadlines = Deadlines(database.client)
        reaper = SessionReaper(database.client, self._deadlines)
        self._committer = Committer(
            database.client,
            store,
            self._policy,
            retry=config.retry,
            turns=turns,
            latest_write=latest_write,
            deadlines=self._deadlines,
            reaper=reaper,
            clock=self._clock,
        )
        self._lanes = Lanes(
            self._committer.commit,
            self._committer.commit_patiently,
            turns,
            timeout_seconds=config.operation_timeout_seconds,
        )
        self._history = History(
            database, config.collections, self._users, latest_write, self._clock
        )
        self._sessions = ApplicationSessions(
            database.client,
            deadlines=self._deadlines,
            reaper=reaper,
            latest_write=latest_write,
            timeout_seconds=config.operation_timeout_seconds,
        )
        self._opening = Opening(
            database, LedgerSettings.of(config), config.collections, config.users
        )

    @classmethod
    def connect(
        cls, uri: str, *, database: str, config: CreditConfig, clock: Clock | None = None
    ) -> CreditLedger:
        """A ledger on a client of its own, which closes with it; ``clock`` as for the class.

        Raises ConfigurationError for an URI with an option that MongoDB's driver would ignore.
        """
        if not isinstance(config, CreditConfig):
            raise ConfigurationError("", "config must be a CreditConfig")
        ledger = cls(connect(uri, database, config.operation_timeout_seconds), config, clock=clock)
        ledger._owns_client = True
        return ledger

    def __repr__(self) -> str:
        """Where its credits are, and whether it is open; nothing of the URI."""
        names = self._config.collections
        return (
            f"<CreditLedger database={self._database.name!r} users={names.users!r} "
            f"transactions={names.transactions!r} decimal_places={self._config.decimal_places} "
            f"{'closed' if self._is_closed else 'open'}>"
        )

    async def __aenter__(self) -> Self:
        """Check that the server can do what the ledger needs, and that its settings are the same.

        Raises ReplicaSetRequiredError, ConfigurationError if the ledger in the database was set up
        with other settings, and StorageError if nothing answers in time. A ledger that is not
        entered compares its settings before its first operation.
        """
        try:
            await self._run_in_time(None, self._open)
        except BaseException:
            # Nothing was begun that would have to be finished, and the deadline is near or over.
            await self._close_client(_HASTE_SECONDS)
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
        """Accept no more operations, finish those accepted, and close an own client.

        Takes no longer than three operations may.
        """
        self._is_closed = True
        seconds = self._config.operation_timeout_seconds
        await self._lanes.close()
        await self._committer.close(seconds)
        await self._close_client(seconds)
        await self._deadlines.close(min(seconds, _LATE_SECONDS))

    async def _close_client(self, seconds: float) -> None:
        if self._owns_client:
            # The driver would wait half a minute for a frozen server to end its sessions. Asked a
            # second time, it has no sessions any more, and closes its connections.
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
        session: AnySession | None = None,
    ) -> User:
        """Open an account. Its opening credits (0 to 2**53 - 1) are its first transaction.

        Where the application has a document of the user without credits, the account is opened on
        it: other fields stay, and so does its tier if none is given. Raises UserExistsError if the
        user has an account, and UndefinedTierError for a ``membership_tier`` that the configuration
        lacks, be it because ``membership`` is not configured at all.
        """
        request = CreateUserRequest(
            **self._common(user_id, idempotency_key, metadata),
            credits=check_amount("credits", credits, least=0),
            membership_tier=check_optional(check_identifier, "membership_tier", membership_tier),
            membership_expires_at=check_optional(
                check_moment, "membership_expires_at", membership_expires_at
            ),
        )
        return await self._do(request, session)

    async def get_user(self, user_id: str, *, session: AnySession | None = None) -> User:
        """A user's account. Raises UserNotFoundError."""
        user_id = self._users.check_id("user_id", user_id)
        own = as_session(session, self._database)
        return user_of(await self._read(own, self._history.account, user_id, own))

    async def get_balance(self, user_id: str, *, session: AnySession | None = None) -> int:
        """A user's credits, in smallest units. Raises UserNotFoundError."""
        return (await self.get_user(user_id, session=session)).credits

    async def delete_user(self, user_id: str, *, requested_by: str | None = None) -> Erasure:
        """Erase the user with all transactions, audit logs and idempotency records, for good.

        Archived ones go, too, but for those in files. From the first moment on there is no such
        user for any operation, and one that is opened anew meanwhile is another, which stays. Rows
        go by at most 1,000 at once, each time within ``operation_timeout_seconds``. If it fails or
        is killed, call it again to complete it. A record stays of how much went, when, and
        ``requested_by`` whom; the database role of the ledger's other work may not do this.

        Raises UserNotFoundError.
        """
        await self._read(None, self._opening.check)
        return await erase_user(
            self._database,
            user_id,
            requested_by=requested_by,
            collections=self._config.collections,
            users=self._config.users,
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
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> ChargeResult:
        """Take what ``action`` costs the user's tier, or ``amount`` units if given.

        ``variables`` are for formulas: at most 200 names with numbers of any exact kind, within
        ±10**18. What the price's formula does not use is ignored, whatever it holds, so that a
        provider's whole usage object can be given; a used one that is no number raises
        InvalidRequestError, which names it. Without variables, a formula that needs some falls back
        to the action's ``default`` if that is a fixed price. An ``amount`` needs no price for the
        action, but the same access.

        Raises UserNotFoundError, UndefinedActionError, UndefinedTierError, MembershipRequiredError,
        MissingVariableError, FormulaEvaluationError, InsufficientCreditsError and
        IdempotencyConflictError.
        """
        if amount is not None and variables is not None:
            raise InvalidRequestError(
                "amount", "cannot be combined with variables: it is the price"
            )
        request = ChargeRequest(
            **self._common(user_id, idempotency_key, metadata),
            action=check_identifier("action", action),
            amount=None if amount is None else check_amount("amount", amount),
            variables=None if variables is None else exact_variables(variables),
        )
        return await self._do(request, session)

    async def refund(
        self,
        user_id: str,
        amount: int,
        *,
        action: str,
        transaction_id: str | None = None,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> RefundResult:
        """Give ``amount`` units back; with ``transaction_id``, of what that charge still holds.

        Raises UserNotFoundError, TransactionNotFoundError, RefundExceedsChargeError and
        IdempotencyConflictError.
        """
        request = RefundRequest(
            **self._common(user_id, idempotency_key, metadata),
            amount=check_amount("amount", amount),
            action=check_identifier("action", action),
            charge_id=check_optional(_check_transaction_id, "transaction_id", transaction_id),
        )
        return await self._do(request, session)

    async def grant(
        self,
        user_id: str,
        amount: int,
        *,
        action: str,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> GrantResult:
        """Give ``amount`` units. Raises UserNotFoundError and IdempotencyConflictError."""
        request = GrantRequest(
            **self._common(user_id, idempotency_key, metadata),
            amount=check_amount("amount", amount),
            action=check_identifier("action", action),
        )
        return await self._do(request, session)

    # Tiers

    async def upgrade_tier(
        self,
        user_id: str,
        target_tier: str,
        *,
        membership_expires_at: datetime | Keep | None = KEEP,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> TierChangeResult:
        """Move to a higher tier and set the balance to its cap (in credits in the configuration).

        ``KEEP`` keeps a future expiry and clears a past one; None means no expiry. Raises
        UserNotFoundError, UndefinedTierError, InvalidTierChangeError and IdempotencyConflictError.
        """
        expires_at = membership_expires_at
        request = UpgradeTierRequest(
            **self._common(user_id, idempotency_key, metadata),
            target_tier=check_identifier("target_tier", target_tier),
            membership_expires_at=expires_at
            if isinstance(expires_at, Keep)
            else _check_expiry(expires_at),
        )
        return await self._do(request, session)

    async def downgrade_tier(
        self,
        user_id: str,
        target_tier: str,
        *,
        clear_expiration: bool = False,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> TierChangeResult:
        """Move to a lower tier and set the balance to its cap; more than that is lost.

        Raises UserNotFoundError, UndefinedTierError, InvalidTierChangeError and
        IdempotencyConflictError.
        """
        request = DowngradeTierRequest(
            **self._common(user_id, idempotency_key, metadata),
            target_tier=check_identifier("target_tier", target_tier),
            clear_expiration=check_flag("clear_expiration", clear_expiration),
        )
        return await self._do(request, session)

    async def renew_tier(
        self,
        user_id: str,
        *,
        membership_expires_at: datetime | None,
        refill: bool = True,
        allow_earlier: bool = False,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> TierChangeResult:
        """Stay in the tier until a new expiry; with ``refill``, set the balance to its cap.

        None is no end, and a membership without one takes any. An end before the present one is
        refused, so that a late webhook changes nothing; ``allow_earlier`` lets it shorten the
        membership.

        Raises UserNotFoundError, UndefinedTierError, InvalidTierChangeError (there is no tier, or
        the end is an earlier one) and IdempotencyConflictError.
        """
        request = RenewTierRequest(
            **self._common(user_id, idempotency_key, metadata),
            membership_expires_at=check_optional(
                check_moment, "membership_expires_at", membership_expires_at
            ),
            refill=check_flag("refill", refill),
            allow_earlier=check_flag("allow_earlier", allow_earlier),
        )
        return await self._do(request, session)

    async def validate_access(
        self, user_id: str, action: str, *, session: AnySession | None = None
    ) -> bool:
        """True if the user's tier may do the action, whatever it costs.

        Raises UserNotFoundError, UndefinedActionError, UndefinedTierError, MembershipRequiredError.
        """
        user_id = self._users.check_id("user_id", user_id)
        action = check_identifier("action", action)
        own = as_session(session, self._database)
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
        """What the action would cost the user now. Writes nothing; raises what a charge would."""
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
        """Transactions, newest first, from ``start_date`` up to but not including ``end_date``.

        ``limit`` is 1 to 1,000, ``offset`` at most 100,000; ``cursor`` is a page's ``next_cursor``
        and goes on exactly where that page ended, whatever was written since.
        ``include_archived`` reads on in the archive collection; what was archived to files is not
        there. Raises UserNotFoundError.
        """
        own = as_session(session, self._database)
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
        """Attempts (``status`` "success" or "failed"), newest first, also on unknown users.

        Limits, and ``include_archived``, are those of ``get_history``.
        """
        own = as_session(session, self._database)
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
        """Create the collections and indexes that are missing; what fits is kept.

        The ledger's settings are written down as well. Takes as long
        as the server does, which for many rows is long. Raises nothing for an index that is in the
        way: the report names it with its remedy. Raises ConfigurationError, and creates nothing, if
        the ledger in the database was set up with other settings.
        """
        self._check_that_it_is_open()
        config = self._config
        try:
            return await ensure_indexes(
                self._database,
                config.collections,
                config.users,
                decimal_places=config.decimal_places,
            )
        except (PyMongoError, BSONError) as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause

    def format(self, units: int) -> str:
        """An amount of smallest units in credits, for people.

        With ``decimal_places=2``, ``format(135_000)`` is ``"1,350.00"``.
        """
        if isinstance(units, bool) or not isinstance(units, int):
            raise InvalidRequestError("units", f"must be an int, not {type(units).__name__}")
        return in_credits(int.__int__(units), self._config.decimal_places)

    # The way in

    def _check_that_it_is_open(self) -> None:
        """Raise LedgerBusyError after close, ConfigurationError on another event loop."""
        if self._is_closed:
            raise LedgerBusyError("the ledger is closed: make another")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError(
                    "",
                    "the ledger belongs to the event loop that it was first used on: make another "
                    "for this one, on a client of its own",
                )
            self._loop = loop

    def _common(self, user_id: object, key: object, metadata: object) -> dict[str, Any]:
        key = check_optional(check_identifier, "idempotency_key", key)
        return {
            "user_id": self._users.check_id("user_id", user_id),
            "transaction_id": str(ObjectId()),
            "key": key if self._config.idempotency.enabled else None,
            "metadata": copy_metadata(metadata),
        }

    def _do(self, request: Request[_R], session: AnySession | None) -> Awaitable[_R]:
        self._check_that_it_is_open()
        own = as_session(session, self._database)
        if own is not None:
            return self._do_in(request, own)
        return self._lanes.submit(request) if self._opening.is_done else self._do_first(request)

    async def _do_first(self, request: Request[_R]) -> _R:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._read(None, self._opening.check)
        return await self._lanes.submit(request, spent_seconds=loop.time() - began)

    async def _do_in(self, request: Request[_R], session: AsyncClientSession) -> _R:
        try:
            outcome = await self._sessions.write(
                session, lambda: self._opened(self._committer.commit_in, request, session)
            )
        except (PyMongoError, BSONError) as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause
        if isinstance(outcome, CreditError):
            raise outcome
        return outcome

    def _opened(
        self,
        work: Callable[_P, Coroutine[Any, Any, _R]],
        /,
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> Coroutine[Any, Any, _R]:
        """The work, before which the settings are compared if they were not yet."""
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
        return await self._run_in_time(session, self._opened, read, *arguments, **options)

    async def _run_in_time(
        self,
        session: AsyncClientSession | None,
        read: Callable[_P, Coroutine[Any, Any, _R]],
        /,
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> _R:
        self._check_that_it_is_open()
        try:
            if session is not None:
                return await self._sessions.read(session, lambda: read(*arguments, **options))
            with Unlogged():
                work = read(*arguments, **options)
                return await self._deadlines.keep(work, self._config.operation_timeout_seconds)
        except asyncio.TimeoutError as error:
            raise StorageError(not_in_time(self._database.client)) from error
        except (PyMongoError, BSONError) as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause
