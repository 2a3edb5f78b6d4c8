"""A page of a browser that is watched: what it asks for, what it complains of, what it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Dialog, Page, Request, Response

from tests.browser.studio_command import Filled
from tests.integration.promises import Database

__all__ = ["SCREENSHOTS", "Site", "Watched", "come_in"]

SCREENSHOTS: Final = Path(__file__).parents[2] / "build" / "studio-screenshots"
_SERIOUS: Final = frozenset({"serious", "critical"})


@dataclass(frozen=True, slots=True)
class Site:
    """A running Studio."""

    browser: Browser
    link: str
    state: Any
    database: Database
    filled: Filled

    @property
    def origin(self) -> str:
        """Its scheme, host and port."""
        return self.link.partition("/enter")[0]


async def come_in(browser: Browser, link: str) -> Any:
    """Open the printed link, and return the cookie that a context of the browser needs."""
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(link)
    assert page.url == f"{link.partition('/enter')[0]}/"
    state = await context.storage_state()
    await context.close()
    return state


class Watched:
    """A page, with all that must not happen on it."""

    def __init__(self, site: Site, page: Page) -> None:
        self.site = site
        self.page = page
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        self.answers: list[int] = []
        page.on("request", self._on_request)
        page.on("response", self._on_response)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", self._on_dialog)

    @classmethod
    async def opened(cls, site: Site, *, width: int, dark: bool, **options: Any) -> Watched:
        """A page of this width, in a context of its own that has the operator's cookie."""
        context = await site.browser.new_context(
            storage_state=site.state,
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            locale="en-GB",
            timezone_id="Asia/Kolkata",
            **options,
        )
        context.set_default_timeout(20_000)
        return cls(site, await context.new_page())

    async def go(self, path: str, **query: str) -> Page:
        """Open a page of Studio's, and wait until its parts are there."""
        asked = f"?{urlencode(query)}" if query else ""
        await self.page.goto(f"{self.site.origin}{path}{asked}")
        await self.settled()
        return self.page

    async def settled(self) -> None:
        """Wait for the parts that the page's script asks for."""
        await self.page.wait_for_function("!document.querySelector('.waiting')")

    async def close(self) -> None:
        """Check what was seen, and close the page."""
        await self.page.context.close()
        assert self.foreign == []
        assert self.complaints == []

    async def check(self, name: str) -> None:
        """Check the page as it is now, and keep a picture of it."""
        await self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
        await self.check_width()
        await self.check_accessibility()
        assert await self.page.evaluate("typeof window.hacked") == "undefined"

    async def check_width(self) -> None:
        """Nothing is wider than the window. Tables and charts scroll by themselves."""
        width, room = await self.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert width <= room, f"{width} px in {room}"

    async def check_accessibility(self) -> None:
        """Axe finds nothing serious or critical."""
        found = await Axe().run(self.page)
        serious = [
            (each["id"], [node["html"][:160] for node in each["nodes"]][:3])
            for each in found.response["violations"]
            if each["impact"] in _SERIOUS
        ]
        assert serious == []

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.site.origin}/", "data:")):
            self.foreign.append(request.url)

    def _on_response(self, response: Response) -> None:
        if response.request.is_navigation_request():
            self.answers.append(response.status)

    def _on_console(self, message: ConsoleMessage) -> None:
        # The browser itself notes each answer of 400 and more.
        is_note = "Failed to load resource" in message.text and self.answers[-1:] >= [400]
        if message.type in ("error", "warning") and not is_note:
            self.complaints.append(message.text)

    async def _on_dialog(self, dialog: Dialog) -> None:
        self.complaints.append(f"a dialog: {dialog.message}")
        await dialog.dismiss()
