"""Each action in a real browser: by mouse, by keyboard, by impatient fingers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest_asyncio
from playwright.async_api import Page

from credit_mongo import CreditConfig, CreditLedger
from tests.browser.studio_command import CONFIG, HOSTILE, running
from tests.browser.watched import Site, Watched, come_in


@pytest_asyncio.fixture
async def books(site: Site) -> AsyncIterator[CreditLedger]:
    """The ledger that Studio shows."""
    async with CreditLedger(site.database, CreditConfig(**CONFIG)) as ledger:
        yield ledger


async def confirm(watched: Any, name: str = "") -> Page:
    """Go on to the preview, look at it, confirm it, and look at the result."""
    page: Page = watched.page
    await page.get_by_role("button", name="Preview").click()
    await page.get_by_role("button", name="Confirm").wait_for()
    if name:
        await watched.check(f"{name}-preview")
    await page.get_by_role("button", name="Confirm").click()
    await page.get_by_role("heading", name="done").wait_for()
    if name:
        await watched.check(f"{name}-done")
    return page


async def test_a_grant_by_mouse(site: Site, look: Any, books: CreditLedger) -> None:
    """From the user's page to the result and back. Hostile texts stay texts."""
    watched = await look()
    page = await watched.go("/user", id=HOSTILE)
    await page.get_by_role("link", name="Grant", exact=True).click()
    await page.get_by_label("Credits", exact=True).fill("12.5")
    await page.get_by_label("End, UTC").fill("2099-01-01T00:00")
    await page.get_by_label("Source").fill(HOSTILE)
    await page.get_by_label("Reason").fill(HOSTILE)
    await confirm(watched, "grant")
    await page.get_by_role("link", name="Back to the user").click()
    await page.get_by_role("heading", name="Lots").wait_for()
    [lot] = (await books.get_user(HOSTILE)).lots
    assert (lot.amount, lot.source) == (1_250, HOSTILE)
    row = (await books.get_history(HOSTILE, limit=1))[0]
    assert row.metadata == {"operator": "carol", "reason": HOSTILE}


async def test_a_grant_by_keyboard(site: Site, look: Any, books: CreditLedger) -> None:
    """The first field has the focus, Enter previews, and Enter confirms."""
    before = (await books.get_user("bob")).credits
    watched = await look(width=360, dark=True)
    page = await watched.go("/grant", user="bob")
    await page.keyboard.type("7")
    for _ in range(5):
        await page.keyboard.press("Tab")
    # A moment's field has a stop for each of its parts.
    await page.get_by_label("Reason").focus()
    await page.keyboard.type("by keyboard")
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="preview").wait_for()
    await watched.check("keyboard-preview-360")
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="done").wait_for()
    await watched.check("keyboard-done-360")
    assert (await books.get_user("bob")).credits == before + 700


async def test_a_mistake_is_shown_beside_its_field(site: Site, look: Any) -> None:
    """With the focus in it, and what was typed still there."""
    for width, dark in ((1280, True), (360, False)):
        watched = await look(width=width, dark=dark)
        page = await watched.go("/refund", user="ann", transaction=site.filled.charge)
        await page.get_by_label("Credits", exact=True).fill("100000")
        await page.get_by_label("Reason").fill("too much")
        await page.get_by_role("button", name="Preview").click()
        await page.get_by_role("alert").wait_for()
        assert "can still be refunded" in await page.get_by_role("alert").inner_text()
        focused = await page.evaluate("[document.activeElement.name, document.activeElement.value]")
        assert focused == ["amount", "100000"]
        await watched.check(f"refund-mistake-{width}")


async def test_a_double_click_makes_one_row(site: Site, look: Any, books: CreditLedger) -> None:
    """And so do a reload of the result, its address in another window, and the back button."""
    before = await books.get_user("bob")
    watched = await look()
    page = await watched.go("/grant", user="bob")
    await page.get_by_label("Credits", exact=True).fill("3")
    await page.get_by_label("Reason").fill("impatient")
    await page.get_by_role("button", name="Preview").click()
    await page.get_by_role("button", name="Confirm").dblclick()
    await page.get_by_role("heading", name="done").wait_for()
    result = await page.locator("main").inner_text()
    await page.reload()
    assert await page.locator("main").inner_text() == result
    other = (await look()).page
    await other.goto(page.url)
    assert await other.locator("main").inner_text() == result
    # Back leads to an empty form, and never to the question whether to send the old one again.
    for _ in range(2):
        await page.go_back()
        assert await page.get_by_role("heading", name="Grant credits").is_visible()
        await page.reload()
        assert await page.get_by_label("Reason").input_value() == ""
    after = await books.get_user("bob")
    assert (after.credits, after.seq) == (before.credits + 300, before.seq + 1)


async def test_refund_revoke_release_and_tier(site: Site, look: Any, books: CreditLedger) -> None:
    """Each from the link on the user's page."""
    user = f"{HOSTILE} 2"
    await books.create_user(user, credits=10_000, membership_tier="free")
    charge = await books.charge(user, "generate-post", amount=2_000)
    grant = await books.grant(user, 5_000, action="campaign", source="spring")
    hold = await books.place_hold(user, "generate-post", amount=1_000, ttl=600)
    watched = await look()
    for link, typed, name in (
        ("Refund", {"Credits": "20"}, "refund"),
        ("Revoke", {}, "revoke"),
        ("Release", {}, "release"),
        ("Change the tier", {}, "tier"),
    ):
        page = await watched.go("/user", id=user)
        places = page.get_by_role("link", name=link, exact=True)
        await places.nth(await places.count() - 1 if link == "Refund" else 0).click()
        for label, text in typed.items():
            await page.get_by_label(label, exact=True).fill(text)
        if link == "Change the tier":
            await page.get_by_label("Tier", exact=True).select_option("premium")
        await page.get_by_label("Reason").fill(f"the {name}")
        await confirm(watched, name)
    assert (await books.get_hold(hold.hold_id)).status == "released"
    rows = await books.get_history(user, limit=3)
    assert [row.operation for row in rows] == ["upgrade_tier", "revoke", "refund"]
    assert (rows[1].revoke_of, rows[2].refund_of) == (grant.transaction_id, charge.transaction_id)


async def test_another_operator_s_change_is_shown(
    site: Site, look: Any, books: CreditLedger
) -> None:
    """Before the second one's is done."""
    watched = await look(width=360)
    page = await watched.go("/grant", user="ann")
    await page.get_by_label("Credits", exact=True).fill("4")
    await page.get_by_label("Reason").fill("the same case")
    await page.get_by_role("button", name="Preview").click()
    await page.get_by_role("button", name="Confirm").wait_for()
    metadata = {"operator": "dave", "reason": HOSTILE}
    await books.grant("ann", 400, action="grant", metadata=metadata)
    await page.get_by_role("button", name="Confirm").click()
    await page.get_by_role("alert").wait_for()
    assert "by dave" in await page.get_by_role("alert").inner_text()
    await watched.check("changed-by-another-360")


async def test_signing_out_leaves_nothing_behind(
    site: Site, replica_set_uri: str, tmp_path: Path
) -> None:
    """Neither in the browser that has done it, nor in one with a copy of its cookie."""
    async with running(replica_set_uri, site.database.name, tmp_path) as link:
        own = replace(site, link=link, state=await come_in(site.browser, link))
        watched = await Watched.opened(own, width=1280, dark=False)
        page = await watched.go("/user", id="ann")
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("heading", name="Signed out").wait_for()
        await watched.check("signed-out")
        await page.goto(f"{own.origin}/user?id=ann")
        await page.get_by_role("heading", name="Open the link").wait_for()
        await watched.check("not-signed-in")
        await watched.close()
        copied = await Watched.opened(own, width=1280, dark=False)
        await copied.page.goto(f"{own.origin}/user?id=ann")
        await copied.page.get_by_role("heading", name="Open the link").wait_for()
        await copied.close()
