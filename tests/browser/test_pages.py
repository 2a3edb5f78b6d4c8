"""Each page of Studio in a real browser: wide and narrow, light and dark, on paper, by keyboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from credit_mongo.studio.actions import ACTION_PAGES
from credit_mongo.studio.pages import PAGES
from tests.browser.studio_command import HOSTILE
from tests.browser.watched import Site

Query = Callable[[Site], dict[str, str]]


def nothing(_: Site) -> dict[str, str]:
    """No questions."""
    return {}


ADDRESSES: Final[dict[str, tuple[str, Query]]] = {
    "overview": ("/", nothing),
    "users": ("/users", nothing),
    "user": ("/user", lambda _: {"id": "ann"}),
    "hostile-user": ("/user", lambda _: {"id": HOSTILE}),
    "transaction": (
        "/transaction",
        lambda site: {"id": site.filled.charge, "show": "metadata"},
    ),
    "refused": ("/refused", nothing),
    "holds": ("/holds", nothing),
    "hold": ("/hold", lambda site: {"id": site.filled.hold}),
    "audit-log": ("/audit-log", nothing),
    "archives": ("/archives", nothing),
    "verification": ("/verification", nothing),
    "prices": ("/settings", nothing),
    "no-such-user": ("/user", lambda _: {"id": "nobody"}),
    "grant-form": ("/grant", lambda _: {"user": HOSTILE}),
    "refund-form": ("/refund", lambda site: {"user": "ann", "transaction": site.filled.charge}),
    "revoke-form": ("/revoke", lambda site: {"user": "ann", "transaction": site.filled.grant}),
    "release-form": ("/release-hold", lambda site: {"user": "ann", "hold": site.filled.hold}),
    "tier-form": ("/change-tier", lambda _: {"user": "ann"}),
}
PARTS: Final = {"/overview/figures", "/overview/live", "/settings/calculation"}
"""Addresses that answer with a part of a page."""


def test_every_page_is_looked_at() -> None:
    """The results of forms have their own tests."""
    paths = {path for path, _ in ADDRESSES.values()}
    assert {page.path for page in (*PAGES, *ACTION_PAGES)} <= paths | PARTS | {"/done"}


@pytest.mark.parametrize("name", ADDRESSES)
async def test_a_page_is_whole_and_accessible(site: Site, look: Any, name: str) -> None:
    """Wide and light, narrow and dark; it asks nobody else for anything, and runs nothing of
    what users wrote."""
    path, query = ADDRESSES[name]
    for width, dark in ((1280, False), (360, True)):
        watched = await look(width=width, dark=dark)
        await watched.go(path, **query(site))
        await watched.check(f"{name}-{width}")


async def test_times_are_local_and_ids_are_copied_whole(site: Site, look: Any) -> None:
    """The hint has the time in UTC. The button copies the id as it is."""
    watched = await look(permissions=["clipboard-read", "clipboard-write"])
    page = await watched.go("/user", id=HOSTILE)
    moment = page.locator("#history time").first
    assert (await moment.get_attribute("title") or "").endswith("UTC")
    assert "UTC" not in await moment.inner_text()
    await page.locator("h1 .copy").click()
    await page.locator("h1 .copy.done").wait_for()
    assert await page.evaluate("navigator.clipboard.readText()") == HOSTILE


async def test_a_phone_shows_who_has_how_much(site: Site, look: Any) -> None:
    """Ids break into a few lines, not into letters, and balances are on the screen beside them."""
    watched = await look(width=360)
    page = await watched.go("/users")
    for balance in await page.locator("tbody tr td.number:nth-child(2)").all():
        box = await balance.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 360
    for path, query in (ADDRESSES["users"], ADDRESSES["user"], ADDRESSES["transaction"]):
        await watched.go(path, **query(site))
        for identity in await page.locator("td .id").all():
            box = await identity.bounding_box()
            assert box is not None
            assert box["height"] < 110
            assert box["width"] > 30


async def test_pages_work_without_script(site: Site, look: Any) -> None:
    """The figures are a link away."""
    watched = await look(java_script_enabled=False)
    page = watched.page
    await page.goto(site.origin)
    await page.get_by_role("link", name="Sum up").click()
    assert await page.locator(".cards").count() == 1


async def test_the_keyboard_is_enough_to_find_a_user(site: Site, look: Any) -> None:
    """The first tab leads to the content, a slash to the search."""
    watched = await look()
    page = await watched.go("/users")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
    await page.keyboard.press("/")
    await page.keyboard.type("bo")
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="bob").first.focus()
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/user?id=bob")
    await page.get_by_role("heading", name="bob").wait_for()


@pytest.mark.parametrize("name", ["user", "transaction", "overview"])
async def test_a_page_on_paper_is_dark_on_white(site: Site, look: Any, name: str) -> None:
    """Even of a dark screen, and without what can only be clicked."""
    path, query = ADDRESSES[name]
    watched = await look(dark=True)
    page = await watched.go(path, **query(site))
    await page.emulate_media(media="print")
    ground, ink = await page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (ground, ink) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    for hidden in (".top nav", ".copy", ".actions", ".undo", ".filters"):
        for each in await page.locator(hidden).all():
            assert not await each.is_visible()
    await page.screenshot(path=f"build/studio-screenshots/{name}-print.png", full_page=True)


async def test_the_light_is_followed(site: Site, look: Any) -> None:
    """Dark where the reader's system is dark, and narrow light as well as wide dark is readable."""
    grounds = set()
    for width, dark in ((1280, True), (360, False)):
        watched = await look(width=width, dark=dark)
        page = await watched.go("/user", id="ann")
        await watched.check(f"user-{width}-{'dark' if dark else 'light'}")
        grounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
