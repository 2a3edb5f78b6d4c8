"""How a person goes through an action of Studio's: the form, the preview, the click."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from typing import Final

from httpx import Response

from tests.integration.studio_browser import Browser, text_of

__all__ = ["ALSO", "Desk", "hidden_of", "problem_of"]

ALSO: Final = {"reason": "case 4711"}
"""What every form needs besides its own fields."""


def hidden_of(page: str, step: str = "") -> dict[str, str]:
    """What a browser sends of a page's form that nobody has touched: of the one with this step."""
    forms = _Forms()
    forms.feed(page)
    for fields in forms.found:
        if "seal" in fields and step in ("", fields["step"]):
            return fields
    raise AssertionError(text_of(page))


class _Forms(HTMLParser):
    """Reads the fields of each form as a browser would send them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.found.append({})
        elif tag == "input" and "name" in own and own.get("type") != "checkbox":
            self.found[-1][own["name"]] = own.get("value", "")
        elif tag == "select":
            self._select = own["name"]
        elif tag == "option" and self._select and "selected" in own:
            self.found[-1][self._select] = own["value"]

    def handle_endtag(self, tag: str) -> None:
        self._select = "" if tag == "select" else self._select


def problem_of(page: str) -> tuple[str, str]:
    """The field that a page complains of, and what it says."""
    found = re.search(r'class="problem"(?: id="problem-([^"]*)")? role="alert">([^<]*)<', page)
    assert found is not None, text_of(page)
    return found[1] or "", unescape(found[2])


class Desk:
    """A browser at the form of one action."""

    def __init__(self, browser: Browser, path: str, **query: str) -> None:
        self.browser = browser
        self.path = path
        self.query = query

    async def form(self) -> dict[str, str]:
        """Open the form, and return its fields as they are."""
        return hidden_of(await self.browser.page(self.path, **self.query))

    async def preview(self, **typed: str) -> Response:
        """Open the form, fill it in, and ask for the preview."""
        return await self.browser.send(self.path, {**await self.form(), **ALSO, **typed})

    async def confirm(self, preview: Response) -> Response:
        """Confirm a preview."""
        return await self.browser.send(self.path, hidden_of(preview.text, "confirm"))

    async def do(self, **typed: str) -> str:
        """Go all the way, and return the last page's text."""
        preview = await self.preview(**typed)
        assert preview.status_code == 200, text_of(preview.text)
        return await self.result(await self.confirm(preview))

    async def result(self, confirmed: Response) -> str:
        """Follow the redirect to the result, and return its text."""
        assert confirmed.status_code == 303, text_of(confirmed.text)
        return text_of(await self.browser.page(confirmed.headers["location"]))
