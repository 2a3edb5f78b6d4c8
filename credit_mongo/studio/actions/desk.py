"""The pages of the actions: form, preview, click, result.

The form gets its idempotency key when it is opened, and keeps it to the end. So a double click, a
reload and the back button lead to the same result, and an answer that was lost can be asked for
again. Key, subject and order travel in a seal that only the same operator's session can send back.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from starlette.responses import Response

from credit_mongo.core.advance import EXPIRE
from credit_mongo.core.operations.capture_hold import CaptureHoldRequest
from credit_mongo.core.operations.charge import ChargeRequest
from credit_mongo.core.results import Transaction, User
from credit_mongo.errors import (
    AccountDataError,
    CommitOutcomeUnknownError,
    ConfigurationError,
    CreditError,
    IdempotencyConflictError,
    InvalidRequestError,
    StorageError,
    UserNotFoundError,
)
from credit_mongo.ledger.previews import Previewed
from credit_mongo.studio.actions.facts import (
    Fact,
    facts_of_preview,
    facts_of_result,
    problem_of,
)
from credit_mongo.studio.actions.forms import REASON, Field, Typed
from credit_mongo.studio.actions.kinds import ACTIONS, About, Action, Subject
from credit_mongo.studio.actions.orders import Order, Result
from credit_mongo.studio.failures import Failure, Refused, failure_of, lacks_privilege
from credit_mongo.studio.rights import check_may_change
from credit_mongo.studio.security import FORM_TOKEN
from credit_mongo.studio.visits import Page, Visit

__all__ = ["ACTION_PAGES"]

_FORM_SECONDS: Final = 3600
_RESULT_SECONDS: Final = 12 * 3600
_VERSION: Final = 1
"""Of what is in a seal. Change it with the form of a seal or of an order."""
_SEAL: Final = "seal"
_ROWS: Final = 20
_BY_USE: Final = frozenset({ChargeRequest.operation, CaptureHoldRequest.operation, EXPIRE})
"""What users and time do to an account. All else was decided by somebody."""

_OLDER: Final = Failure(
    409,
    "Studio was updated since this form was opened",
    "The new version doesn't take the old form. Nothing was changed.",
    "Open the form again.",
)
_USED: Final = Failure(
    409,
    "This form was used before, for something else",
    "Each form does one thing, and this one has done it. Nothing was changed by sending it again.",
    "Look into the user's history. For another change, open the form again.",
)
_NO_TIERS: Final = Failure(
    404,
    "There are no tiers",
    "The configuration that Studio was started with defines no tiers.",
    "Start credit-mongo studio with --config and the application's configuration.",
)
_UNKNOWN: Final = Failure(
    503,
    "It may have happened, or not",
    "The database took the order, and then its answer was lost.",
    "Send it again: if it has happened, it won't happen twice.",
)
_NOT_NOW: Final = Failure(
    503,
    "The database doesn't answer",
    "Nothing was changed.",
    "Send it again in a moment. However often you do, it happens once.",
)


@dataclass(frozen=True, slots=True)
class _Draft:
    """What a form carries sealed. The order is there from the preview on."""

    path: str
    subject: Subject
    key: str
    values: Mapping[str, str] = field(default_factory=dict)
    order: Mapping[str, Any] | None = None
    facts: tuple[Fact, ...] = ()
    seq: int = 0
    """The user's last transaction when the preview was made."""

    @classmethod
    def new(cls, action: Action, subject: Subject) -> _Draft:
        return cls(action.path, subject, f"studio-{secrets.token_urlsafe(18)}")

    def seal(self, visit: Visit) -> str:
        facts = [fact.to_plain() for fact in self.facts]
        parts = (self.path, self.subject, self.key, self.values, self.order, facts, self.seq)
        return visit.seal([_VERSION, *parts])

    @classmethod
    def unseal(cls, visit: Visit, action: Action) -> _Draft:
        """The draft of the form that was sent. Raises Refused."""
        version, *parts = visit.unseal(visit.form.get(_SEAL, ""), _FORM_SECONDS)
        if version != _VERSION:
            raise Refused(_OLDER)
        path, subject, key, values, order, facts, seq = parts
        if path != action.path:
            raise InvalidRequestError("form", "belongs to another page")
        shown = tuple(Fact.from_plain(fact) for fact in facts)
        return cls(path, Subject(*subject), key, values, order, shown, seq)

    def to_order(self, visit: Visit) -> Order:
        """The order that was previewed."""
        if self.order is None:
            raise InvalidRequestError("form", "has not been previewed yet")
        return Order.from_plain(self.order, self.key, visit.operator)


async def _show(visit: Visit, action: Action) -> Response:
    await check_may_change(visit)
    subject = await action.subject(visit)
    return await _form(visit, action, _Draft.new(action, subject))


async def _send(visit: Visit, action: Action) -> Response:
    await check_may_change(visit)
    draft = _Draft.unseal(visit, action)
    step = visit.form.get("step", "")
    if step == "confirm":
        return await _confirm(visit, action, draft)
    if step == "change":
        return await _form(visit, action, draft)
    if step != "preview":
        raise InvalidRequestError("step", "must be preview, change or confirm")
    return await _preview(visit, action, draft)


def _fields(action: Action, about: About) -> tuple[Field, ...]:
    return (*action.fields(about), REASON)


async def _form(
    visit: Visit, action: Action, draft: _Draft, refusal: CreditError | None = None
) -> Response:
    ledger, config = visit.reads.ledger, visit.studio.config
    user = await ledger.get_user(draft.subject.user_id)
    fields = _fields(action, About(draft.subject, user, config))
    if any(each.kind == "choice" and not each.choices for each in fields):
        raise Refused(_NO_TIERS)
    known = await action.look_up(visit, draft.subject)
    place, text = "", ""
    if refusal is not None:
        names = {each.name for each in fields}
        place, text = problem_of(refusal, config.decimal_places, names)
    return visit.render(
        "action_form.html",
        status=409 if text else 200,
        title=action.title,
        action=action,
        subject=draft.subject,
        user=user,
        facts=known.facts,
        fields=fields,
        # A form that comes back has what was typed, even where that is nothing.
        values={
            each.name: draft.values.get(each.name, known.values.get(each.name, each.value))
            for each in fields
        },
        problem_place=place,
        problem=text,
        seal=draft.seal(visit),
    )


async def _preview(visit: Visit, action: Action, draft: _Draft) -> Response:
    ledger, config = visit.reads.ledger, visit.studio.config
    about = About(draft.subject, await ledger.get_user(draft.subject.user_id), config)
    typed_in = {each.name: visit.form.get(each.name, "") for each in _fields(action, about)}
    draft = replace(draft, values=typed_in)
    typed = Typed(draft.values, config.decimal_places)
    try:
        asked = action.ask(about, typed)
        order = Order(*asked, draft.key, visit.operator, typed.text(REASON.name))
        seen = await order.preview(ledger)
    except CreditError as error:
        if _is_no_refusal(error):
            raise
        return await _form(visit, action, draft, error)
    return _show_preview(visit, action, draft, order, seen)


def _show_preview(
    visit: Visit,
    action: Action,
    draft: _Draft,
    order: Order,
    seen: Previewed[Result],
    *,
    others: tuple[Transaction, ...] = (),
) -> Response:
    if seen.result.replayed:
        return _done(visit, action, order, seen.result)
    facts = tuple(facts_of_preview(order, seen))
    seq = 0 if seen.before is None else seen.before.seq
    draft = replace(draft, order=order.to_plain(), facts=facts, seq=seq)
    return _render_preview(visit, action, draft, others=others, status=409 if others else 200)


def _render_preview(
    visit: Visit,
    action: Action,
    draft: _Draft,
    *,
    status: int,
    others: tuple[Transaction, ...] = (),
    failure: Failure | None = None,
) -> Response:
    order = draft.to_order(visit)
    return visit.render(
        "action_preview.html",
        status=status,
        title=action.title,
        action=action,
        subject=draft.subject,
        facts=draft.facts,
        reason=order.reason,
        seal=draft.seal(visit),
        others=others,
        failure=failure,
    )


async def _confirm(visit: Visit, action: Action, draft: _Draft) -> Response:
    ledger, order = visit.reads.ledger, draft.to_order(visit)
    try:
        seen = await _look_again(visit, order)
        if seen is not None and not seen.result.replayed:
            others = await _changes_by_others(visit, draft)
            if others:
                return _show_preview(visit, action, draft, order, seen, others=others)
        result = await order.carry_out(ledger)
    except CommitOutcomeUnknownError:
        return _render_preview(visit, action, draft, status=503, failure=_UNKNOWN)
    except CreditError as error:
        if isinstance(error, StorageError) and not _is_lasting(error):
            return _render_preview(visit, action, draft, status=503, failure=_NOT_NOW)
        if _is_no_refusal(error):
            raise
        return await _form(visit, action, draft, error)
    return _done(visit, action, order, result)


async def _look_again(visit: Visit, order: Order) -> Previewed[Result] | None:
    """What the order would do by now. None if the ledger would refuse it: it will say so itself."""
    try:
        return await order.preview(visit.reads.ledger)
    except CreditError as error:
        if _is_no_refusal(error):
            raise
        return None


async def _changes_by_others(visit: Visit, draft: _Draft) -> tuple[Transaction, ...]:
    """What people have done to the account since the preview, say another operator the same."""
    user: User = await visit.reads.ledger.get_user(draft.subject.user_id)
    if user.seq == draft.seq:
        return ()
    rows = await visit.reads.ledger.get_history(draft.subject.user_id, limit=_ROWS)
    return tuple(
        row
        for row in rows
        if row.seq > draft.seq and row.operation not in _BY_USE and row.idempotency_key != draft.key
    )


def _done(visit: Visit, action: Action, order: Order, result: Result) -> Response:
    facts = [fact.to_plain() for fact in facts_of_result(order, result)]
    transaction_id = getattr(result, "transaction_id", "")
    # Not the reason: it is metadata, and addresses get into logs.
    told = [_VERSION, action.title, result.user_id, transaction_id, facts]
    return visit.redirect("/done", result=visit.seal(told))


async def _show_done(visit: Visit) -> Response:
    version, *told = visit.unseal(visit.asked("result") or "", _RESULT_SECONDS)
    if version != _VERSION:
        raise Refused(_OLDER)
    title, user_id, transaction_id, facts = told
    return visit.render(
        "action_done.html",
        title=title,
        user_id=user_id,
        transaction_id=transaction_id,
        facts=[Fact.from_plain(fact) for fact in facts],
    )


def _is_lasting(error: StorageError) -> bool:
    """Whether sending it again would not help."""
    return isinstance(error, AccountDataError) or lacks_privilege(error)


def _is_no_refusal(error: CreditError) -> bool:
    """Whether an error is about more than what was typed."""
    kinds = (
        StorageError,
        CommitOutcomeUnknownError,
        ConfigurationError,
        IdempotencyConflictError,
        UserNotFoundError,
    )
    return isinstance(error, kinds)


def _page_of(action: Action) -> Page:
    async def show(visit: Visit) -> Response:
        return await _show(visit, action)

    async def send(visit: Visit) -> Response:
        try:
            return await _send(visit, action)
        except IdempotencyConflictError:
            return visit.fail(_USED, back=visit.here())
        except Exception as error:
            failure = failure_of(error)
            # What was typed must outlive an outage. The form's own token is the page's to add.
            is_away = failure.status == _NOT_NOW.status and visit.form.get("step") == "preview"
            sent = {name: text for name, text in visit.form.items() if name != FORM_TOKEN}
            return visit.fail(failure, back=visit.here(), again=sent if is_away else {})

    return Page(action.path, show, send=send)


ACTION_PAGES: Final[tuple[Page, ...]] = (
    *(_page_of(action) for action in ACTIONS),
    Page("/done", _show_done),
)
