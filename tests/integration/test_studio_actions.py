"""What operators do in Studio: each action is one operation of the ledger's, once."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from credit_mongo import CreditConfig, CreditLedger
from tests.integration.promises import Database, check_promises
from tests.integration.studio_browser import Browser, opened, text_of
from tests.integration.studio_forms import ALSO, Desk, hidden_of, problem_of

SIGNED = {"operator": "ann", "reason": "case 4711"}
END = (datetime.now(timezone.utc) + timedelta(days=9)).replace(second=0, microsecond=0)


@pytest.fixture
def credit_config(config: CreditConfig) -> CreditConfig:
    """With two decimal places: Studio's people write credits, the ledger counts units."""
    return config.model_copy(update={"decimal_places": 2})


async def last_row(ledger: CreditLedger, user_id: str) -> Any:
    """The user's newest transaction."""
    return (await ledger.get_history(user_id, limit=1))[0]


async def test_a_grant_is_previewed_and_then_done(
    ledger: CreditLedger, database: Database, config: CreditConfig
) -> None:
    """The preview writes nothing. The row and its audit row say who did it and why."""
    await ledger.create_user("bob", credits=10_000)
    typed = {"amount": "1,350.5", "expires_at": f"{END:%Y-%m-%dT%H:%M}", "source": "gift"}
    async with opened(ledger) as browser:
        desk = Desk(browser, "/grant", user="bob")
        preview = await desk.preview(**typed)
        text = text_of(preview.text)
        assert "Given +1,350.50" in text
        assert "Balance 100.00 → 1,450.50" in text
        assert "Reason case 4711 By ann" in text
        assert (await ledger.get_user("bob")).seq == 1
        assert len(await ledger.get_audit_log("bob")) == 1
        done = await desk.result(await desk.confirm(preview))
        assert "Balance 100.00 → 1,450.50" in done
    row = await last_row(ledger, "bob")
    assert (row.operation, row.amount, row.metadata) == ("grant", 135_050, SIGNED)
    assert (await ledger.get_audit_log("bob", limit=1))[0].metadata == SIGNED
    [lot] = (await ledger.get_user("bob")).lots
    assert (lot.amount, lot.expires_at, lot.source) == (135_050, END, "gift")
    await check_promises(database)


async def test_a_charge_is_refunded_and_never_beyond(ledger: CreditLedger) -> None:
    """The history leads to the form. What is too much is refused beside the amount, in credits."""
    await ledger.create_user("bob", credits=10_000)
    charge = await ledger.charge("bob", "generate-post", amount=3_000)
    async with opened(ledger) as browser:
        link = f"/refund?user=bob&amp;transaction={charge.transaction_id}"
        assert link in await browser.page("/user", id="bob")
        desk = Desk(browser, "/refund", user="bob", transaction=charge.transaction_id)
        typed = {"transaction_id": charge.transaction_id, "action": "goodwill"}
        refused = await desk.preview(amount="30.01", **typed)
        assert refused.status_code == 409
        assert problem_of(refused.text) == (
            "amount",
            "30.00 credits of this charge can still be refunded, not 30.01.",
        )
        assert 'value="30.01"' in refused.text
        assert "Balance 70.00 → 90.00" in await desk.do(amount="20", **typed)
        unknown = await desk.preview(amount="1", transaction_id="f" * 24)
        assert problem_of(unknown.text)[0] == "transaction_id"
    row = await last_row(ledger, "bob")
    assert (row.operation, row.amount, row.refund_of) == ("refund", 2_000, charge.transaction_id)


async def test_a_refund_s_form_begins_with_all_that_can_be_refunded(ledger: CreditLedger) -> None:
    """What was typed instead stays when the form comes back, even nothing."""
    await ledger.create_user("bob", credits=500_000)
    await ledger.create_user("eve", credits=500)
    charge = await ledger.charge("bob", "generate-post", amount=300_000)
    await ledger.refund("bob", 65_050, action="x", transaction_id=charge.transaction_id)
    async with opened(ledger) as browser:
        desk = Desk(browser, "/refund", user="bob", transaction=charge.transaction_id)
        form = await desk.form()
        assert form["amount"] == "2,349.50"
        assert "Can still be refunded 2,349.50" in text_of(
            await browser.page("/refund", **desk.query)
        )
        assert hidden_of((await desk.preview(amount="")).text)["amount"] == ""
        kept = hidden_of((await desk.preview(amount="7", reason="")).text)
        assert (kept["amount"], kept["transaction_id"]) == ("7", charge.transaction_id)
        assert "Balance 2,650.50 → 5,000.00" in await desk.do(amount=form["amount"])
        assert (await desk.form())["amount"] == ""
        for user_id, other in (("eve", charge.transaction_id), ("bob", "f" * 24), ("bob", "x")):
            other_desk = Desk(browser, "/refund", user=user_id, transaction=other)
            page = await browser.page("/refund", **other_desk.query)
            assert hidden_of(page)["amount"] == ""
            assert "Can still" not in text_of(page)


async def test_a_refund_of_no_charge_is_given(ledger: CreditLedger) -> None:
    """Without a transaction id."""
    await ledger.create_user("bob")
    async with opened(ledger) as browser:
        assert "Given back +5.00" in await Desk(browser, "/refund", user="bob").do(amount="5")


async def test_a_grant_is_revoked(ledger: CreditLedger) -> None:
    """The preview says what is taken and what stays uncollected."""
    await ledger.create_user("bob")
    grant = await ledger.grant("bob", 10_000, action="gift", source="card")
    await ledger.charge("bob", "generate-post", amount=8_000)
    async with opened(ledger) as browser:
        assert f"/revoke?user=bob&amp;transaction={grant.transaction_id}" in await browser.page(
            "/user", id="bob"
        )
        desk = Desk(browser, "/revoke", user="bob", transaction=grant.transaction_id)
        preview = text_of((await desk.preview()).text)
        assert "Taken −20.00 Uncollected 80.00" in preview  # noqa: RUF001
        assert "Balance 20.00 → 0.00" in await desk.do()
        again = await desk.preview()
        assert problem_of(again.text)[1] == (
            "Nothing is left of this grant: it is revoked already."
        )
    row = await last_row(ledger, "bob")
    assert (row.operation, row.amount, row.revoke_of) == ("revoke", -2_000, grant.transaction_id)


async def test_a_hold_is_released(ledger: CreditLedger) -> None:
    """It moves no credits, so the audit log alone keeps who did it and why."""
    await ledger.create_user("bob", credits=10_000)
    hold = await ledger.place_hold("bob", "generate-post", amount=4_000, ttl=600)
    async with opened(ledger) as browser:
        assert f"hold={hold.hold_id}" in await browser.page("/user", id="bob")
        desk = Desk(browser, "/release-hold", user="bob", hold=hold.hold_id)
        preview = text_of((await desk.preview()).text)
        assert "Freed 40.00" in preview
        assert "Available 60.00 → 100.00" in preview
        assert "Freed 40.00" in await desk.do()
    assert (await ledger.get_hold(hold.hold_id)).status == "released"
    audit = (await ledger.get_audit_log("bob", limit=1))[0]
    assert (audit.operation, audit.metadata) == ("release_hold", SIGNED)


async def test_a_tier_is_upgraded_downgraded_and_renewed(ledger: CreditLedger) -> None:
    """The choice of the tier says which of the three it is."""
    await ledger.create_user("bob", credits=500, membership_tier="free")
    moment = {"end": "at", "membership_expires_at": f"{END:%Y-%m-%dT%H:%M}"}
    async with opened(ledger) as browser:
        desk = Desk(browser, "/change-tier", user="bob")
        done = await desk.do(target_tier="premium", **moment)
        assert "Tier free → premium" in done
        assert "Balance 5.00 → 2,000.00" in done
        assert (await ledger.get_user("bob")).membership_expires_at == END
        assert "Tier premium → free" in await desk.do(target_tier="free", end="never")
        assert (await ledger.get_user("bob")).membership_expires_at is None
        await ledger.charge("bob", "generate-post", amount=100)
        renewed = await desk.do(target_tier="free", keeps_credits="yes", **moment)
        assert "Balance 99.00 → 99.00" in renewed
    rows = await ledger.get_history("bob", limit=4)
    names = [row.operation for row in rows]
    assert names == ["renew_tier", "charge", "downgrade_tier", "upgrade_tier"]
    assert rows[0].metadata == SIGNED


WRONG: dict[str, tuple[str, dict[str, str], str, str]] = {
    "no amount": ("/grant", {"amount": ""}, "amount", "Is missing."),
    "zero": ("/grant", {"amount": "0"}, "amount", "Must be more than zero."),
    "less than nothing": ("/grant", {"amount": "-5"}, "amount", "Must be more than zero."),
    "a comma for a point": ("/grant", {"amount": "1,5"}, "amount", "Must be a number of credits"),
    "too exact": ("/grant", {"amount": "1.005"}, "amount", "at most 2 decimal places"),
    "an exponent": ("/grant", {"amount": "1e3"}, "amount", "Must be a number of credits"),
    "other digits": ("/grant", {"amount": "\u0661"}, "amount", "Must be a number of credits"),
    "not a number": ("/grant", {"amount": "NaN"}, "amount", "Must be a number of credits"),
    "too much": ("/grant", {"amount": "9" * 16}, "amount", "more than one operation can move"),
    "far too much": ("/grant", {"amount": "9" * 20}, "amount", "more than a balance can be"),
    "a past end": (
        "/grant",
        {"amount": "1", "expires_at": "2020-01-01T00:00"},
        "expires_at",
        "in the past",
    ),
    "no moment": ("/grant", {"amount": "1", "expires_at": "soon"}, "expires_at", "Must be a date"),
    "no priority": ("/grant", {"amount": "1", "priority": "101"}, "priority", "from 0 to 100"),
    "half a priority": ("/grant", {"amount": "1", "priority": "1.5"}, "priority", "whole number"),
    "no reason": ("/grant", {"amount": "1", "reason": " "}, "reason", "Is missing."),
    "a long reason": ("/grant", {"amount": "1", "reason": "x" * 256}, "reason", "not 256"),
    "a long source": ("/grant", {"amount": "1", "source": "x" * 256}, "source", "not 256"),
    "no charge": (
        "/refund",
        {"amount": "1", "transaction_id": "x"},
        "transaction_id",
        "There is no charge",
    ),
    "no tier": ("/change-tier", {"target_tier": "gold", "end": "keep"}, "target_tier", "none of"),
    "the same tier": ("/change-tier", {"target_tier": "free", "end": "keep"}, "end", "renewal"),
    "a moment for nothing": (
        "/change-tier",
        {"target_tier": "premium", "end": "keep", "membership_expires_at": "2099-01-01T00:00"},
        "membership_expires_at",
        "choice",
    ),
    "a renewal's box": (
        "/change-tier",
        {"target_tier": "premium", "end": "keep", "keeps_credits": "yes"},
        "keeps_credits",
        "renewal",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_is_said_beside_its_field(ledger: CreditLedger, case: str) -> None:
    """What was typed stays, and nothing was written."""
    path, typed, field, text = WRONG[case]
    await ledger.create_user("bob", credits=500, membership_tier="free")
    async with opened(ledger) as browser:
        refused = await Desk(browser, path, user="bob").preview(**{"action": "gift", **typed})
        assert refused.status_code == 409
        place, problem = problem_of(refused.text)
        assert place == field
        assert text in problem
        assert f'aria-describedby="problem-{field}' in refused.text or field in {
            *("target_tier", "end", "keeps_credits")
        }
    assert (await ledger.get_user("bob")).seq == 1


async def confirm_often(browser: Browser, desk: Desk, form: dict[str, str], times: int) -> set[str]:
    sent = await asyncio.gather(*(browser.send(desk.path, form) for _ in range(times)))
    assert {each.status_code for each in sent} == {303}
    return {await desk.result(each) for each in sent}


async def test_clicking_twice_and_reloading_give_one_row_and_one_result(
    ledger: CreditLedger,
) -> None:
    """At once, afterwards, by the back button to the form, and by asking for the preview again."""
    await ledger.create_user("bob", credits=100)
    async with opened(ledger) as browser:
        desk = Desk(browser, "/grant", user="bob")
        form = {**await desk.form(), **ALSO, "amount": "5", "action": "gift"}
        preview = await browser.send("/grant", form)
        clicked = hidden_of(preview.text, "confirm")
        results = await confirm_often(browser, desk, clicked, 4)
        results |= await confirm_often(browser, desk, clicked, 1)
        again = await browser.send("/grant", form)
        results.add(await desk.result(again))
        assert len(results) == 1
        other = await browser.send("/grant", {**form, "amount": "6"})
        assert other.status_code == 409
        assert "used before, for something else" in text_of(other.text)
    assert (await ledger.get_user("bob")).credits == 600


async def test_the_preview_can_be_changed(ledger: CreditLedger) -> None:
    """The form comes back with what was typed."""
    await ledger.create_user("bob", credits=100)
    async with opened(ledger) as browser:
        preview = await Desk(browser, "/grant", user="bob").preview(amount="5", action="a <b>")
        form = await browser.send("/grant", hidden_of(preview.text, "change"))
        assert form.status_code == 200
        assert 'value="a &lt;b&gt;"' in form.text
        assert 'value="case 4711"' in form.text
