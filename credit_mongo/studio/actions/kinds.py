"""The actions: which fields each has, and which order it makes of what was typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple

from credit_mongo.config import CreditConfig
from credit_mongo.core.extras import BASE_PRIORITY
from credit_mongo.core.operations import REFUNDABLE
from credit_mongo.core.pricing import in_credits
from credit_mongo.core.results import User
from credit_mongo.errors import InvalidRequestError, TransactionNotFoundError
from credit_mongo.studio.actions.facts import Fact
from credit_mongo.studio.actions.forms import Field, Typed
from credit_mongo.studio.visits import Visit

__all__ = ["ACTIONS", "About", "Action", "Asked", "Known", "Subject"]


class Subject(NamedTuple):
    """What an action is about. The address names it, and the form carries it sealed."""

    user_id: str
    transaction_id: str = ""
    hold_id: str = ""


class About(NamedTuple):
    """What decides which fields there are."""

    subject: Subject
    user: User
    config: CreditConfig


class Asked(NamedTuple):
    """An operation's name and arguments."""

    operation: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an action's subject before anybody types."""

    facts: tuple[Fact, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    """What a new form has in its fields, by name."""


class Action:
    """One thing that operators can do."""

    path: ClassVar[str]
    title: ClassVar[str]
    note: ClassVar[str] = ""

    async def subject(self, visit: Visit) -> Subject:
        """What the address says that it is about. Raises InvalidRequestError."""
        return Subject(visit.asked_id("user"))

    async def look_up(self, visit: Visit, subject: Subject) -> Known:  # noqa: ARG002
        """What the form shows of its subject, besides the user."""
        return Known()

    def fields(self, about: About) -> tuple[Field, ...]:
        """The fields, without the reason."""
        raise NotImplementedError

    def ask(self, about: About, typed: Typed) -> Asked:
        """The operation that was typed. Raises InvalidRequestError."""
        raise NotImplementedError


def _action_field(value: str, config: CreditConfig) -> Field:
    return Field(
        "action",
        "Action",
        "What it is for, as the history shows it.",
        is_required=True,
        value=value,
        choices=tuple((name, name) for name in sorted({value, *config.costs})),
    )


class Grant(Action):
    """Give credits."""

    path = "/grant"
    title = "Grant credits"

    def fields(self, about: About) -> tuple[Field, ...]:
        return (
            Field("amount", "Credits", kind="amount", is_required=True),
            _action_field("grant", about.config),
            Field("expires_at", "End, UTC", "Empty: the credits never end.", kind="moment"),
            Field(
                "priority",
                "Priority",
                "0 to 100. Lower numbers are used first; 50 is the rest of the balance.",
                kind="number",
                value=str(BASE_PRIORITY),
            ),
            Field("source", "Source", "Keeps these credits apart from those of other sources."),
        )

    def ask(self, about: About, typed: Typed) -> Asked:
        return Asked(
            "grant",
            {
                "user_id": about.subject.user_id,
                "amount": typed.amount("amount"),
                "action": typed.text("action"),
                "expires_at": typed.moment("expires_at"),
                "priority": typed.number("priority", BASE_PRIORITY),
                "source": typed.optional_text("source"),
            },
        )


class Refund(Action):
    """Give credits back, for a charge or freely."""

    path = "/refund"
    title = "Refund"

    async def subject(self, visit: Visit) -> Subject:
        charge = visit.asked_id("transaction") if visit.asked("transaction") else ""
        return Subject(visit.asked_id("user"), transaction_id=charge)

    async def look_up(self, visit: Visit, subject: Subject) -> Known:
        if not subject.transaction_id:
            return Known()
        try:
            found = await visit.reads.transaction(subject.transaction_id)
        except TransactionNotFoundError:
            # The ledger says so beside the field, with all that it knows.
            return Known()
        charge = found.transaction
        if charge.user_id != subject.user_id or charge.operation not in REFUNDABLE:
            return Known()
        left = -charge.amount - sum(refund.amount for refund in found.refunds)
        facts = (
            Fact("Charged", "amount", -charge.amount),
            Fact("Can still be refunded", "amount", max(left, 0)),
        )
        places = visit.studio.config.decimal_places
        return Known(facts, {"amount": in_credits(left, places)} if left > 0 else {})

    def fields(self, about: About) -> tuple[Field, ...]:
        charge = Field(
            "transaction_id",
            "Charge",
            "The charge's transaction id. Its refunds together never exceed it. "
            "Empty: a refund of no charge.",
            value=about.subject.transaction_id,
        )
        amount = Field("amount", "Credits", kind="amount", is_required=True)
        return (amount, charge, _action_field("refund", about.config))

    def ask(self, about: About, typed: Typed) -> Asked:
        return Asked(
            "refund",
            {
                "user_id": about.subject.user_id,
                "amount": typed.amount("amount"),
                "action": typed.text("action"),
                "transaction_id": typed.optional_text("transaction_id"),
            },
        )


class Revoke(Action):
    """Take back a grant."""

    path = "/revoke"
    title = "Revoke a grant"
    note = (
        "The credits come from the lot that the grant went into, then from the rest of the "
        "balance, then from the overdraft. What was spent or is held stays uncollected."
    )

    async def subject(self, visit: Visit) -> Subject:
        return Subject(visit.asked_id("user"), transaction_id=visit.asked_id("transaction"))

    async def look_up(self, visit: Visit, subject: Subject) -> Known:  # noqa: ARG002
        return Known((Fact("Grant", "id", subject.transaction_id),))

    def fields(self, about: About) -> tuple[Field, ...]:
        return (
            Field("amount", "Credits", "Empty: all that is left of the grant.", kind="amount"),
            _action_field("revoke", about.config),
        )

    def ask(self, about: About, typed: Typed) -> Asked:
        return Asked(
            "revoke",
            {
                "grant_transaction_id": about.subject.transaction_id,
                "amount": typed.optional_amount("amount"),
                "action": typed.text("action"),
            },
        )


class ReleaseHold(Action):
    """End a hold."""

    path = "/release-hold"
    title = "Release a hold"
    note = "Work that still uses the hold goes on, but can't be charged any more."

    async def subject(self, visit: Visit) -> Subject:
        return Subject(visit.asked_id("user"), hold_id=visit.asked_id("hold"))

    async def look_up(self, visit: Visit, subject: Subject) -> Known:
        hold = await visit.reads.ledger.get_hold(subject.hold_id)
        facts = (
            Fact("Hold", "id", hold.hold_id),
            Fact("Action", "text", hold.action),
            Fact("Amount", "amount", hold.amount),
            Fact("Captured", "amount", hold.captured),
            Fact("Ends" if hold.status == "active" else "Ended", "moment", hold.expires_at),
            Fact("Status", "text", hold.status),
        )
        return Known(facts)

    def fields(self, about: About) -> tuple[Field, ...]:  # noqa: ARG002 - as of every action
        return ()

    def ask(self, about: About, typed: Typed) -> Asked:  # noqa: ARG002 - as of every action
        return Asked("release_hold", {"hold_id": about.subject.hold_id})


_END_CHOICES: Final = (
    ("keep", "as it is"),
    ("never", "never"),
    ("at", "at the moment below"),
)


def _levels(config: CreditConfig) -> Mapping[str, int]:
    return {} if config.membership is None else config.membership.tiers


class ChangeTier(Action):
    """Upgrade, downgrade or renew."""

    path = "/change-tier"
    title = "Change the tier"

    def fields(self, about: About) -> tuple[Field, ...]:
        levels = _levels(about.config)
        tiers = sorted(levels, key=lambda tier: levels[tier])
        current = about.user.membership_tier
        return (
            Field(
                "target_tier",
                "Tier",
                "The present tier is renewed." if current in levels else "",
                kind="choice",
                is_required=True,
                value=current or "",
                choices=tuple(
                    (tier, f"{tier} (present)" if tier == current else tier) for tier in tiers
                ),
            ),
            Field("end", "Ends", kind="choice", value="keep", choices=_END_CHOICES),
            Field("membership_expires_at", "Moment, UTC", kind="moment"),
            Field(
                "keeps_credits",
                "Keep the balance as it is",
                "A renewal only. Otherwise the tier's cap sets the balance, as the configuration "
                "says; lots and held credits stay.",
                kind="flag",
            ),
            Field("allow_earlier", "Allow an earlier end", "A renewal only.", kind="flag"),
        )

    def ask(self, about: About, typed: Typed) -> Asked:
        target_field, end_field, *_ = self.fields(about)
        target, end = typed.one_of(target_field), typed.one_of(end_field)
        moment = typed.moment("membership_expires_at")
        if (moment is None) is (end == "at"):
            reason = "is missing" if moment is None else 'needs the choice "at the moment below"'
            raise InvalidRequestError("membership_expires_at", reason)
        current = about.user.membership_tier
        if target == current:
            return self._renewal(about.subject, typed, end, moment)
        for name in ("keeps_credits", "allow_earlier"):
            if typed.flag(name):
                raise InvalidRequestError(name, "is for a renewal of the present tier")
        levels = _levels(about.config)
        arguments: dict[str, Any] = {"user_id": about.subject.user_id, "target_tier": target}
        if current is not None and levels[target] < levels.get(current, 0):
            if end == "at":
                reason = "a downgrade keeps the end or removes it: renew afterwards for another"
                raise InvalidRequestError("end", reason)
            return Asked("downgrade_tier", {**arguments, "clear_expiration": end == "never"})
        if end != "keep":
            arguments["membership_expires_at"] = moment
        return Asked("upgrade_tier", arguments)

    def _renewal(self, subject: Subject, typed: Typed, end: str, moment: Any) -> Asked:
        if end == "keep":
            raise InvalidRequestError("end", "a renewal needs another end, or none")
        return Asked(
            "renew_tier",
            {
                "user_id": subject.user_id,
                "membership_expires_at": moment,
                "refill": not typed.flag("keeps_credits"),
                "allow_earlier": typed.flag("allow_earlier"),
            },
        )


ACTIONS: Final[tuple[Action, ...]] = (Grant(), Refund(), Revoke(), ReleaseHold(), ChangeTier())
