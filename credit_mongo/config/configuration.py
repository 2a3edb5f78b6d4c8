"""The configuration: prices, tiers, limits. Frozen, and checked as a whole when it is built.

It takes the names of this library or the Credit SDK's own camelCase keys, so that a configuration
of that SDK, saved as JSON, loads unchanged.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

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
from credit_mongo.config.parts import Part, wrong
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.formula import Formula, FormulaSyntaxError
from credit_mongo.core.membership import Membership
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
        IdempotencyInput,
        MembershipInput,
        RetryInput,
        UserMappingInput,
    )

__all__ = [
    "MAX_CLOCK_SKEW_SECONDS",
    "SETTINGS_COLLECTION",
    "AuditConfig",
    "CollectionNames",
    "CreditConfig",
    "IdempotencyConfig",
    "MembershipConfig",
    "RetryConfig",
    "UserMapping",
]

# Both far above any price list; with as many, a configuration is checked in some seconds.
MAX_PRICES: Final = 10_000
MAX_FORMULAS_LENGTH: Final = 1_000_000
SETTINGS_COLLECTION: Final = "ledger_settings"
"""Where each ledger of a database keeps what gives its rows their meaning."""


MAX_CLOCK_SKEW_SECONDS: Final = 60.0
"""Clocks set by NTP differ by far less than a second, those of machines just resumed by more."""


def _name(value: str) -> str:
    try:
        return check_identifier("name", value)
    except InvalidRequestError as error:
        raise wrong(error.reason) from None


def _not_boolean(value: Any) -> Any:
    # To Python, and so to pydantic, True is the number 1.
    if isinstance(value, bool):
        raise wrong("must be a number, not a bool")
    return value


def _credits(value: Any) -> Fraction:
    """A number of credits, exactly as written: 0.1 is one tenth, not its binary neighbour."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise wrong(f"must be a number, not {type(value).__name__}")
    if not isinstance(value, int) and not Decimal(str(value)).is_finite():
        raise wrong("must be a finite number")
    if value == 0:
        return Fraction(0)
    # Bounds come before the fraction: that of 1e-999999 would fill the memory.
    if value < 0 or value > LARGEST_AMOUNT:
        raise wrong(f"must be from 0 to {LARGEST_AMOUNT}")
    exponent = Decimal(str(value)).as_tuple().exponent
    if isinstance(exponent, int) and exponent < -400:  # noqa: PLR2004 - no float has more
        raise wrong("has more than 400 decimal places")
    return Fraction(str(value))


def _price(value: Any) -> Fraction | Formula:
    if not isinstance(value, str):
        return _credits(value)
    try:
        return Formula.parse(value)
    except FormulaSyntaxError as error:
        raise wrong(f"is not a formula: {error}") from None


def _bounded(costs: Any) -> Any:
    """Prices, before they are looked at: each may take milliseconds."""
    if not isinstance(costs, Mapping):
        return costs
    prices = [
        price
        for by_tier in costs.values()
        if isinstance(by_tier, Mapping)
        for price in by_tier.values()
    ]
    if len(prices) > MAX_PRICES:
        raise wrong(f"has more than {MAX_PRICES:,} prices")
    if sum(len(price) for price in prices if isinstance(price, str)) > MAX_FORMULAS_LENGTH:
        raise wrong(f"has formulas of more than {MAX_FORMULAS_LENGTH:,} characters in all")
    return costs


_Name = Annotated[str, AfterValidator(_name)]
_Written = PlainSerializer(written_price)
_Credits = Annotated[Fraction, BeforeValidator(_credits), _Written]
_Number = BeforeValidator(_not_boolean)


class _FrozenDict(dict[Any, Any]):
    """A dict that stays as it is: the policy was made from it."""

    def _refuse(self, *_: object, **__: object) -> Any:
        raise TypeError("a configuration cannot be changed: build another")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


_K = TypeVar("_K")
_V = TypeVar("_V")
_Mapping = Annotated[dict[_K, _V], AfterValidator(_FrozenDict)]


class RetryConfig(Part):
    """Tries after a failure of the database (a lost connection, an election, …).

    A write conflict does not count as a failure: the ledger retries it until the operation's
    deadline, whatever these settings are.

    Delays are in milliseconds. Each delay is drawn at random, from 0 up to a bound that begins at
    ``initial_delay_ms`` and grows by ``backoff_multiplier`` up to ``max_delay_ms``: after an
    election, processes do not all try again at the same moment.
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
            raise wrong("must not be smaller than initial_delay_ms", "max_delay_ms")
        return self

    def delay_seconds(
        self, failures: int, draw: Callable[[float, float], float] = random.uniform
    ) -> float:
        """How long to wait after the ``failures``-th failure, in seconds: drawn from 0 to most."""
        return draw(0.0, self.longest_delay_seconds(failures))

    def longest_delay_seconds(self, failures: int) -> float:
        """The longest wait after the ``failures``-th failure, in seconds."""
        # Capped before the power is taken: 100 ** 1000 is no float.
        exponent = min(failures - 1, 64)
        delay = self.initial_delay_ms * self.backoff_multiplier**exponent
        return min(delay, self.max_delay_ms) / 1000


class IdempotencyConfig(Part):
    """How long keys are remembered. Disabled, keys are taken and not looked at."""

    enabled: bool = True
    # A year at most: expiry dates must stay in the calendar.
    ttl_seconds: Annotated[int, _Number] = Field(
        default=24 * 3600,
        ge=1,
        le=366 * 24 * 3600,
        validation_alias=AliasChoices("ttl_seconds", "ttl", "ttlSeconds"),
    )


class AuditConfig(Part):
    """Whether attempts are audited."""

    enabled: bool = True


class MembershipConfig(Part):
    """Tiers by level (higher is more), the lowest tier that an action needs, caps by tier.

    ``credits_caps`` are in **credits**, as prices are: the balance that a change to the tier sets.
    (Amounts of the API, such as the ``credits`` of ``create_user``, are in smallest units: with two
    decimal places a cap of 20 is a balance of 2000.)
    """

    tiers: _Mapping[_Name, Annotated[int, _Number, Field(ge=0, le=1_000_000)]] = Field(min_length=1)
    requirements: _Mapping[_Name, _Name | None] = Field(default_factory=dict)
    credits_caps: _Mapping[_Name, _Credits] = Field(
        validation_alias=AliasChoices("credits_caps", "creditsCaps")
    )

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            tiers: Mapping[str, int],
            requirements: Mapping[str, str | None] = ...,
            credits_caps: Mapping[str, CreditsInput],
        ) -> None: ...

    @model_validator(mode="after")
    def _names_are_tiers(self) -> MembershipConfig:
        if DEFAULT_TIER in self.tiers:
            raise wrong(f"{DEFAULT_TIER!r} is the price of those without a tier", "tiers")
        for action, tier in self.requirements.items():
            if tier is not None and tier not in self.tiers:
                raise wrong(f"there is no tier {tier!r}", "requirements", action)
        for tier in self.tiers:
            if tier not in self.credits_caps:
                raise wrong(f"the tier {tier!r} has none", "credits_caps")
        for tier in self.credits_caps:
            if tier not in self.tiers:
                raise wrong(f"there is no tier {tier!r}", "credits_caps", tier)
        return self


_CollectionName = Annotated[
    # MongoDB's own limits: no "$", no NUL, not "system."; 200 leaves room for the database's name.
    str,
    StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=200),
]


class CollectionNames(Part):
    """The names of the ledger's collections; the fields not given have their own names.

    ``users``, ``transactions``, ``audit_logs`` and ``idempotency_records`` are the books.
    ``turns`` holds the document by which processes that write the same users take turns;
    ``transactions_archive`` and ``audit_logs_archive`` what was archived, ``archive_manifests``
    what went where, ``archive_borders`` where a user's history goes on from, ``erasures`` how much
    of whom was erased, and ``paid_requests`` the requests of `credit_mongo.integrations.fastapi`.

    Two ledgers in one database must share none of them: see ``with_prefix``.
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

    @model_validator(mode="after")
    def _names_are_distinct(self) -> CollectionNames:
        seen: set[str] = set()
        for field, name in self.model_dump().items():
            if name in seen:
                raise wrong("two of them have the same name")
            if name.startswith("system."):
                raise wrong("names that start with 'system.' belong to MongoDB", field)
            if name == SETTINGS_COLLECTION:
                raise wrong(f"{name!r} is where all ledgers keep their settings", field)
            seen.add(name)
        return self

    @classmethod
    def with_prefix(cls, prefix: str, **names: str) -> Self:
        """All default names with ``prefix`` before them, for one of several ledgers in a database.

        ``names`` are taken as they are: ``CollectionNames.with_prefix("shop_", users="members")``.
        Raises ConfigurationError for a prefix, or a name, that no collection can have.
        """
        defaults = {name: f"{prefix}{info.default}" for name, info in cls.model_fields.items()}
        return cls(**{**defaults, **names})


class CreditConfig(Part):
    """Everything a ledger needs to know. Raises ConfigurationError, which names the wrong key.

    ``costs`` has prices by action, then by tier and ``default``: a number of credits ≥ 0, or a
    formula. Without ``default``, tiers that are not listed have no access to the action. With
    ``decimal_places`` = n, one credit is 10**n of the smallest units in which all amounts of the
    API are counted. ``operation_timeout_seconds`` bounds every call, but of ``delete_user`` each
    step, and not ``ensure_indexes``. ``max_clock_skew_seconds`` (60; ten years at most) is how far
    this process's clock may be from the server's before operations are refused. ``users`` says that
    the documents in ``collections.users`` are the application's, and what their fields are called.
    """

    costs: Annotated[
        _Mapping[_Name, _Mapping[_Name, Annotated[Any, BeforeValidator(_price), _Written]]],
        BeforeValidator(_bounded),
    ]
    membership: MembershipConfig | None = None
    retry: RetryConfig = Field(default_factory=RetryConfig)
    idempotency: IdempotencyConfig = Field(default_factory=IdempotencyConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
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
    max_clock_skew_seconds: Annotated[float, _Number] = Field(
        default=MAX_CLOCK_SKEW_SECONDS,
        ge=1,
        le=10 * 366 * 24 * 3600,
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
            collections: CollectionNames | CollectionsInput = ...,
            users: UserMapping | UserMappingInput | None = None,
            decimal_places: int = 0,
            operation_timeout_seconds: float = 10,
            max_clock_skew_seconds: float = MAX_CLOCK_SKEW_SECONDS,
        ) -> None: ...

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A configuration from JSON. Numbers are taken as decimals, exactly as written.

        Raises ConfigurationError, also for a key that stands twice in one object.
        """
        return cls(**parse_json(text))

    def to_json(self) -> str:
        """All settings as indented JSON, formulas as written; ``from_json`` gives an equal one."""
        return to_json_text(self.model_dump())

    @model_validator(mode="after")
    def _prices_are_usable(self) -> CreditConfig:
        tiers = None if self.membership is None else self.membership.tiers
        for action, prices in self.costs.items():
            if not prices:
                raise wrong("has no prices", "costs", action)
            for tier, price in prices.items():
                if tiers is not None and tier != DEFAULT_TIER and tier not in tiers:
                    raise wrong(f"there is no tier {tier!r}", "costs", action, tier)
                self._check_amount(price, "costs", action, tier)
        if self.membership is not None:
            for tier, cap in self.membership.credits_caps.items():
                self._check_amount(cap, "membership", "credits_caps", tier)
        return self

    def _check_amount(self, amount: Fraction | Formula, *field: str) -> None:
        reason = price_problem(amount, self.decimal_places)
        if reason is not None:
            raise wrong(reason, *field)
        if isinstance(amount, Formula):
            doubt = rounding_warning(amount, self.decimal_places)
            if doubt is not None:
                message = f"{'.'.join(field)}: {doubt}"
                warnings.warn(message, PriceRoundsToZeroWarning, stacklevel=2)

    @cached_property
    def policy(self) -> Policy:
        """The policy that this configuration makes, with prices in smallest units."""
        prices: dict[str, Mapping[str, Price]] = {
            action: {
                tier: price if isinstance(price, Formula) else self._units(price)
                for tier, price in by_tier.items()
            }
            for action, by_tier in self.costs.items()
        }
        return Policy(Tariff(prices, 10**self.decimal_places), self._membership())

    def _units(self, credits_given: Fraction) -> int:
        return to_units(credits_given, 10**self.decimal_places)

    def _membership(self) -> Membership:
        if self.membership is None:
            return Membership({}, {}, {})
        return Membership(
            levels=dict(self.membership.tiers),
            requirements={a: t for a, t in self.membership.requirements.items() if t is not None},
            caps={t: self._units(cap) for t, cap in self.membership.credits_caps.items()},
        )
