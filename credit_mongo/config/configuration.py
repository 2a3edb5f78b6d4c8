"""The configuration: prices, tiers and limits. It is frozen, and checked when it is built.

Keys have this library's names or the Credit SDK's camelCase names, so a configuration of that SDK,
saved as JSON, loads unchanged.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    model_validator,
)

from credit_mongo.config.json_text import parse_json, to_json_text, written_price
from credit_mongo.config.parts import Part, invalid
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.formula import Formula, FormulaSyntaxError
from credit_mongo.core.membership import Membership, OnChange
from credit_mongo.core.policy import Policy
from credit_mongo.core.price_checks import (
    MAX_DECIMAL_PLACES,
    price_problem,
    rounding_warning,
)
from credit_mongo.core.pricing import DEFAULT_TIER, Price, Tariff, to_units
from credit_mongo.core.values import LARGEST_AMOUNT, check_identifier
from credit_mongo.errors import InvalidRequestError, PriceRoundsToZeroWarning

if TYPE_CHECKING:
    from typing_extensions import Self

    from credit_mongo.config.inputs import (
        AuditInput,
        CollectionsInput,
        CostsInput,
        CreditsInput,
        HoldsInput,
        IdempotencyInput,
        LotsInput,
        MembershipInput,
        RetryInput,
        UserMappingInput,
    )

__all__ = [
    "BACKUPS_COLLECTION",
    "IMPORTS_COLLECTION",
    "LONGEST_CLOCK_SKEW_SECONDS",
    "LONGEST_TTL_SECONDS",
    "MAX_CLOCK_SKEW_SECONDS",
    "MIGRATIONS_COLLECTION",
    "SETTINGS_COLLECTION",
    "AuditConfig",
    "CollectionNames",
    "CreditConfig",
    "HoldsConfig",
    "IdempotencyConfig",
    "LotsConfig",
    "MembershipConfig",
    "RetryConfig",
    "UserMapping",
]

# Both are far above any price list. Checking a configuration of this size takes some seconds.
MAX_PRICES: Final = 10_000
MAX_FORMULAS_LENGTH: Final = 1_000_000
SETTINGS_COLLECTION: Final = "ledger_settings"
"""The collection in which all ledgers of a database store their settings."""
MIGRATIONS_COLLECTION: Final = "ledger_migrations"
"""The collection in which a database has the log and the lock of its migrations."""
IMPORTS_COLLECTION: Final = "ledger_imports"
"""The collection in which a database has its imports' progress and their lock."""
BACKUPS_COLLECTION: Final = "ledger_backups"
"""The collection in which a database has the marks and the lease of its backups."""

MAX_CLOCK_SKEW_SECONDS: Final = 60.0
"""The default: clocks set by NTP differ by much less than a second, clocks of machines that have
just resumed by more."""
LONGEST_CLOCK_SKEW_SECONDS: Final = 10 * 366 * 24 * 3600
# Much longer times could lead to expiry dates that the calendar doesn't have.
LONGEST_TTL_SECONDS: Final = 366 * 24 * 3600


def _name(value: str) -> str:
    try:
        return check_identifier("name", value)
    except InvalidRequestError as error:
        raise invalid(error.reason) from None


def _not_boolean(value: Any) -> Any:
    # For Python, and so for pydantic, True is the number 1.
    if isinstance(value, bool):
        raise invalid("must be a number, not a bool")
    return value


def _credits(value: Any) -> Fraction:
    """Return a number of credits exactly as written: 0.1 is one tenth, not the nearest float."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise invalid(f"must be a number, not {type(value).__name__}")
    if not isinstance(value, int) and not Decimal(str(value)).is_finite():
        raise invalid("must be a finite number")
    if value == 0:
        return Fraction(0)
    # Check the range before making the fraction: that of 1e-999999 would fill the memory.
    if value < 0 or value > LARGEST_AMOUNT:
        raise invalid(f"must be from 0 to {LARGEST_AMOUNT}")
    exponent = Decimal(str(value)).as_tuple().exponent
    if isinstance(exponent, int) and exponent < -400:  # noqa: PLR2004 - no float has more
        raise invalid("has more than 400 decimal places")
    return Fraction(str(value))


def _price(value: Any) -> Fraction | Formula:
    if not isinstance(value, str):
        return _credits(value)
    try:
        return Formula.parse(value)
    except FormulaSyntaxError as error:
        raise invalid(f"is not a formula: {error}") from None


def _check_size(costs: Any) -> Any:
    """Refuse too many prices before parsing any of them, which can take milliseconds each."""
    if not isinstance(costs, Mapping):
        return costs
    prices = [
        price
        for by_tier in costs.values()
        if isinstance(by_tier, Mapping)
        for price in by_tier.values()
    ]
    if len(prices) > MAX_PRICES:
        raise invalid(f"has more than {MAX_PRICES:,} prices")
    if sum(len(price) for price in prices if isinstance(price, str)) > MAX_FORMULAS_LENGTH:
        raise invalid(f"has formulas of more than {MAX_FORMULAS_LENGTH:,} characters in total")
    return costs


_Name = Annotated[str, AfterValidator(_name)]
_Written = PlainSerializer(written_price)
_Credits = Annotated[Fraction, BeforeValidator(_credits), _Written]
_Number = BeforeValidator(_not_boolean)


class _FrozenDict(dict[Any, Any]):
    """A dict that cannot be changed, because the ledger's policy was built from it."""

    def _refuse(self, *_: object, **__: object) -> Any:
        raise TypeError("a configuration cannot be changed: build a new one")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


_K = TypeVar("_K")
_V = TypeVar("_V")
_Mapping = Annotated[dict[_K, _V], AfterValidator(_FrozenDict)]


class RetryConfig(Part):
    """How the ledger retries after a failure of the database, such as an election.

    ``max_attempts`` (1 to 1,000) includes the first attempt. Delays are in milliseconds (0 to
    60,000). Each delay is random, from 0 up to a bound, so that processes don't all retry at the
    same moment. The bound begins at ``initial_delay_ms`` and grows by ``backoff_multiplier`` (1 to
    100) with each failure, up to ``max_delay_ms``.

    These settings don't apply to write conflicts. The ledger retries a write conflict until the
    operation's deadline.
    """

    enabled: bool = True
    max_attempts: Annotated[int, _Number] = Field(
        default=10, ge=1, le=1000, validation_alias=AliasChoices("max_attempts", "maxAttempts")
    )
    initial_delay_ms: Annotated[float, _Number] = Field(
        default=20,
        ge=0,
        le=60_000,
        validation_alias=AliasChoices("initial_delay_ms", "initialDelay", "initialDelayMs"),
    )
    max_delay_ms: Annotated[float, _Number] = Field(
        default=1000,
        ge=0,
        le=60_000,
        validation_alias=AliasChoices("max_delay_ms", "maxDelay", "maxDelayMs"),
    )
    backoff_multiplier: Annotated[float, _Number] = Field(
        default=2,
        ge=1,
        le=100,
        validation_alias=AliasChoices("backoff_multiplier", "backoffMultiplier"),
    )

    @model_validator(mode="after")
    def _delays_are_ordered(self) -> RetryConfig:
        if self.max_delay_ms < self.initial_delay_ms:
            raise invalid("must not be smaller than initial_delay_ms", "max_delay_ms")
        return self

    def delay_seconds(
        self, failures: int, draw: Callable[[float, float], float] = random.uniform
    ) -> float:
        """Return how many seconds to wait after this many failures: random, from 0 to the longest.

        ``draw`` returns a number between its two arguments.
        """
        return draw(0.0, self.longest_delay_seconds(failures))

    def longest_delay_seconds(self, failures: int) -> float:
        """Return the longest delay after this many failures, in seconds."""
        # The exponent is capped because 100 ** 1000 is too large for a float.
        exponent = min(failures - 1, 64)
        delay = self.initial_delay_ms * self.backoff_multiplier**exponent
        return min(delay, self.max_delay_ms) / 1000


class IdempotencyConfig(Part):
    """How long the ledger remembers idempotency keys: ``ttl_seconds``, 1 second to 366 days.

    With ``enabled=False``, calls still accept keys, but the ledger ignores them.
    """

    enabled: bool = True
    ttl_seconds: Annotated[int, _Number] = Field(
        default=24 * 3600,
        ge=1,
        le=LONGEST_TTL_SECONDS,
        validation_alias=AliasChoices("ttl_seconds", "ttl", "ttlSeconds"),
    )


class AuditConfig(Part):
    """Whether the ledger writes audit logs of all attempts."""

    enabled: bool = True


class LotsConfig(Part):
    """What happens to credits that are refunded to a lot after its end.

    For ``refund_grace_seconds`` (0 to ten years) after the lot's end they can still be used.
    """

    refund_grace_seconds: Annotated[float, _Number] = Field(
        default=0,
        ge=0,
        le=10 * 366 * 24 * 3600,
        allow_inf_nan=False,
        validation_alias=AliasChoices("refund_grace_seconds", "refundGraceSeconds"),
    )


class HoldsConfig(Part):
    """How long after its end a hold can still be captured: ``late_seconds``, 0 to 366 days."""

    late_seconds: Annotated[float, _Number] = Field(
        default=24 * 3600,
        ge=0,
        le=366 * 24 * 3600,
        allow_inf_nan=False,
        validation_alias=AliasChoices("late_seconds", "lateSeconds"),
    )


class MembershipConfig(Part):
    """The tiers, the actions that need one, and the balance that each tier sets.

    ``tiers`` gives each tier its level, 0 to 1,000,000; a higher level is a better tier. It may be
    empty, as it is without a ``MembershipConfig``.
    ``requirements`` names the lowest tier that an action needs; None means no requirement.
    ``credits_caps`` gives each tier its cap: a change to it sets the base of the balance, that is
    the balance without lots. ``on_change`` says how: ``"cap"`` sets it to the cap, ``"raise"`` does
    so unless it is higher, ``"add"`` adds the cap, and ``"keep"`` leaves it. A debt is netted.

    The caps are in **credits**, like prices. The API's amounts, such as ``credits`` of
    ``create_user``, are in smallest units: with two decimal places, a cap of 20 is a balance of
    2000.
    """

    tiers: _Mapping[_Name, Annotated[int, _Number, Field(ge=0, le=1_000_000)]]
    requirements: _Mapping[_Name, _Name | None] = Field(default_factory=dict)
    credits_caps: _Mapping[_Name, _Credits] = Field(
        validation_alias=AliasChoices("credits_caps", "creditsCaps")
    )
    on_change: OnChange = Field(
        default="cap", validation_alias=AliasChoices("on_change", "onChange")
    )

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            tiers: Mapping[str, int],
            requirements: Mapping[str, str | None] = ...,
            credits_caps: Mapping[str, CreditsInput],
            on_change: OnChange = "cap",
        ) -> None: ...

    @model_validator(mode="after")
    def _names_are_tiers(self) -> MembershipConfig:
        if DEFAULT_TIER in self.tiers:
            reason = f"{DEFAULT_TIER!r} cannot be a tier: it means users without a tier"
            raise invalid(reason, "tiers")
        for action, tier in self.requirements.items():
            if tier is not None and tier not in self.tiers:
                raise invalid(f"there is no tier {tier!r}", "requirements", action)
        for tier in self.tiers:
            if tier not in self.credits_caps:
                raise invalid(f"missing cap for tier {tier!r}", "credits_caps")
        for tier in self.credits_caps:
            if tier not in self.tiers:
                raise invalid(f"there is no tier {tier!r}", "credits_caps", tier)
        return self


_CollectionName = Annotated[
    # MongoDB forbids "$", NUL and "system." in names. 200 leaves room for the database's name.
    str,
    StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=200),
]


class CollectionNames(Part):
    """The names of the ledger's collections. Each field's default is its own name.

    ``users``, ``transactions``, ``audit_logs`` and ``idempotency_records`` are the books. The other
    collections:

    - ``turns``: which process may write next, if several write the same users.
    - ``transactions_archive`` and ``audit_logs_archive``: archived rows.
    - ``archive_manifests``: what each archive run moved, and where.
    - ``archive_borders``: where a user's history continues after the archived part.
    - ``erasures``: records of erased users.
    - ``paid_requests``: requests paid through `credit_mongo.integrations.fastapi`.
    - ``holds`` and ``holds_archive``: credits that are kept for work under way, and were.

    Two ledgers in one database must not share any of them: see ``with_prefix``.
    """

    users: _CollectionName = "users"
    transactions: _CollectionName = "transactions"
    audit_logs: _CollectionName = Field(
        default="audit_logs", validation_alias=AliasChoices("audit_logs", "auditLogs")
    )
    idempotency_records: _CollectionName = Field(
        default="idempotency_records",
        validation_alias=AliasChoices("idempotency_records", "idempotencyRecords"),
    )
    turns: _CollectionName = "turns"
    transactions_archive: _CollectionName = "transactions_archive"
    audit_logs_archive: _CollectionName = "audit_logs_archive"
    archive_manifests: _CollectionName = "archive_manifests"
    archive_borders: _CollectionName = "archive_borders"
    erasures: _CollectionName = "erasures"
    paid_requests: _CollectionName = "paid_requests"
    holds: _CollectionName = "holds"
    holds_archive: _CollectionName = "holds_archive"

    @model_validator(mode="after")
    def _names_are_distinct(self) -> CollectionNames:
        seen: set[str] = set()
        for field, name in self.model_dump().items():
            if name in seen:
                raise invalid(f"two collections have the name {name!r}: give each its own")
            if name.startswith("system."):
                raise invalid(f"{name!r} starts with 'system.', which MongoDB reserves", field)
            if name == SETTINGS_COLLECTION:
                reason = f"{name!r} is reserved: all ledgers keep their settings there"
                raise invalid(reason, field)
            if name == MIGRATIONS_COLLECTION:
                reason = f"{name!r} is reserved: the log of the migrations is there"
                raise invalid(reason, field)
            if name == IMPORTS_COLLECTION:
                reason = f"{name!r} is reserved: imports keep their progress there"
                raise invalid(reason, field)
            if name == BACKUPS_COLLECTION:
                reason = f"{name!r} is reserved: all ledgers mark their backups there"
                raise invalid(reason, field)
            seen.add(name)
        return self

    @classmethod
    def with_prefix(cls, prefix: str, **names: str) -> Self:
        """Return all default names with ``prefix`` in front, for several ledgers in one database.

        ``names`` are taken without the prefix, as in ``with_prefix("shop_", users="members")``.
        Raises ConfigurationError if a collection cannot have one of the resulting names.
        """
        defaults = {name: f"{prefix}{info.default}" for name, info in cls.model_fields.items()}
        return cls(**{**defaults, **names})


class CreditConfig(Part):
    """All settings of a ledger. Raises ConfigurationError, which names the wrong key.

    - ``costs``: prices by action, then by tier or ``default``. A price is a number of credits (0 or
      more) or a formula. Without ``default``, tiers that aren't listed have no access to the
      action.
    - ``decimal_places`` (0 to 9): one credit is 10 to this power smallest units. All amounts of the
      API are in smallest units.
    - ``operation_timeout_seconds`` (0.05 to 3,600): the time limit of every call. In
      ``delete_user`` it limits each step, and ``ensure_indexes`` has no limit.
    - ``on_busy``: what a call does while thousands of operations are under way. ``"raise"``: it
      raises LedgerBusyError once 20,000 wait. ``"wait"``: it waits for room (4,096 may be under
      way), in order of arrival, and ``operation_timeout_seconds`` begins when it has room.
    - ``max_clock_skew_seconds`` (1 second to ten years): operations raise ClockSkewError if this
      process's clock differs from the server's by more.
    - ``lots`` and ``holds``: refunds to lots that have ended, and late captures of holds.
    - ``users``: the field names of the application's own documents, if ``collections.users`` is
      the application's collection.
    """

    costs: Annotated[
        _Mapping[_Name, _Mapping[_Name, Annotated[Any, BeforeValidator(_price), _Written]]],
        BeforeValidator(_check_size),
    ]
    membership: MembershipConfig | None = None
    retry: RetryConfig = Field(default_factory=RetryConfig)
    idempotency: IdempotencyConfig = Field(default_factory=IdempotencyConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    lots: LotsConfig = Field(default_factory=LotsConfig)
    holds: HoldsConfig = Field(default_factory=HoldsConfig)
    collections: CollectionNames = Field(default_factory=CollectionNames)
    users: UserMapping | None = None
    decimal_places: Annotated[int, _Number] = Field(
        default=0,
        ge=0,
        le=MAX_DECIMAL_PLACES,
        validation_alias=AliasChoices("decimal_places", "decimalPlaces"),
    )
    operation_timeout_seconds: Annotated[float, _Number] = Field(
        default=10,
        ge=0.05,
        le=3600,
        allow_inf_nan=False,
        validation_alias=AliasChoices("operation_timeout_seconds", "operationTimeoutSeconds"),
    )
    on_busy: Literal["raise", "wait"] = Field(
        default="raise", validation_alias=AliasChoices("on_busy", "onBusy")
    )
    max_clock_skew_seconds: Annotated[float, _Number] = Field(
        default=MAX_CLOCK_SKEW_SECONDS,
        ge=1,
        le=LONGEST_CLOCK_SKEW_SECONDS,
        allow_inf_nan=False,
        validation_alias=AliasChoices("max_clock_skew_seconds", "maxClockSkewSeconds"),
    )

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            costs: CostsInput,
            membership: MembershipConfig | MembershipInput | None = None,
            retry: RetryConfig | RetryInput = ...,
            idempotency: IdempotencyConfig | IdempotencyInput = ...,
            audit: AuditConfig | AuditInput = ...,
            lots: LotsConfig | LotsInput = ...,
            holds: HoldsConfig | HoldsInput = ...,
            collections: CollectionNames | CollectionsInput = ...,
            users: UserMapping | UserMappingInput | None = None,
            decimal_places: int = 0,
            operation_timeout_seconds: float = 10,
            on_busy: Literal["raise", "wait"] = "raise",
            max_clock_skew_seconds: float = MAX_CLOCK_SKEW_SECONDS,
        ) -> None: ...

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Build a configuration from JSON. Its numbers are taken exactly as written.

        The text has at most 1,000,000 characters. Raises ConfigurationError if it isn't a valid
        configuration, or if an object contains the same key twice.
        """
        return cls(**parse_json(text))

    def to_json(self) -> str:
        """Return all settings as indented JSON. ``from_json`` reads it as an equal configuration.

        Formulas stay as they were written.
        """
        return to_json_text(self.model_dump())

    @model_validator(mode="after")
    def _prices_are_usable(self) -> CreditConfig:
        tiers = None if self.membership is None else self.membership.tiers
        for action, prices in self.costs.items():
            if not prices:
                raise invalid("has no prices", "costs", action)
            for tier, price in prices.items():
                if tiers is not None and tier != DEFAULT_TIER and tier not in tiers:
                    raise invalid(f"there is no tier {tier!r}", "costs", action, tier)
                self._check_amount(price, "costs", action, tier)
        if self.membership is not None:
            for tier, cap in self.membership.credits_caps.items():
                self._check_amount(cap, "membership", "credits_caps", tier)
        return self

    def _check_amount(self, amount: Fraction | Formula, *field: str) -> None:
        reason = price_problem(amount, self.decimal_places)
        if reason is not None:
            raise invalid(reason, *field)
        if isinstance(amount, Formula):
            warning = rounding_warning(amount, self.decimal_places)
            if warning is not None:
                message = f"{'.'.join(field)}: {warning}"
                warnings.warn(message, PriceRoundsToZeroWarning, stacklevel=2)

    @cached_property
    def policy(self) -> Policy:
        """The policy of this configuration, with prices in smallest units."""
        prices: dict[str, Mapping[str, Price]] = {
            action: {
                tier: price if isinstance(price, Formula) else self._units(price)
                for tier, price in by_tier.items()
            }
            for action, by_tier in self.costs.items()
        }
        return Policy(
            Tariff(prices, 10**self.decimal_places),
            self._membership(),
            refund_grace=timedelta(seconds=self.lots.refund_grace_seconds),
            hold_late=timedelta(seconds=self.holds.late_seconds),
        )

    def _units(self, credits_given: Fraction) -> int:
        return to_units(credits_given, 10**self.decimal_places)

    def _membership(self) -> Membership:
        if self.membership is None:
            return Membership({}, {}, {})
        return Membership(
            levels=dict(self.membership.tiers),
            requirements={a: t for a, t in self.membership.requirements.items() if t is not None},
            caps={t: self._units(cap) for t, cap in self.membership.credits_caps.items()},
            on_change=self.membership.on_change,
        )
