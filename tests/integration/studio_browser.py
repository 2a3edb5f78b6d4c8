"""A browser that looks at Studio: it keeps cookies, and checks what every answer must have."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from html.parser import HTMLParser
from typing import Any, Final

from httpx import ASGITransport, AsyncClient, Response

from credit_mongo import CreditLedger
from credit_mongo.studio.application import application
from credit_mongo.studio.gates import LinkGate
from credit_mongo.studio.security import HostNames

__all__ = ["CONTENT_SECURITY_POLICY", "HOSTILE_TEXTS", "HOSTS", "Browser", "opened"]

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
# All that the templates have. A tag of somebody's name is none of these.
_TAGS: Final = {
    *("html", "head", "meta", "title", "link", "script", "body", "a", "header", "main", "nav"),
    *("section", "form", "div", "span", "p", "h1", "h2", "small", "strong", "code", "pre", "bdi"),
    *("time", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"),
    *("label", "input", "select", "option", "datalist", "button", "textarea", "output", "br"),
    *("ul", "li", "svg", "circle", "path", "rect", "line", "text"),
}
HOSTS: Final = HostNames(frozenset({"127.0.0.1", "localhost", "::1"}))
HOSTILE_TEXTS: Final = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u202c",
    "a/b?c=d&e#f%00%2e%2e",
    "..",
    '=HYPERLINK("http://x")',
    "x" * 255,
    "日本語 👩\u200d🚀 ß",
    "&lt;b&gt;&amp;",
)


class Browser:
    """Gets pages of one Studio."""

    def __init__(self, client: AsyncClient, base: str) -> None:
        self.client = client
        self.base = base

    async def get(self, path: str, **query: str) -> Response:
        """Get a page of Studio's, without following a redirect."""
        found = await self.client.get(f"{self.base}{path}", params=query or None)
        return check(found)

    async def page(self, path: str, **query: str) -> str:
        """Get a page that has to be there."""
        found = await self.get(path, **query)
        assert found.status_code == 200, (found.status_code, text_of(found.text))
        return found.text

    async def send(self, path: str, form: dict[str, str], **headers: str) -> Response:
        """Send a form, as a page of Studio's own would."""
        origin = {"origin": "http://127.0.0.1:8480"}
        found = await self.client.post(
            f"{self.base}{path}", data=form, headers={**origin, **headers}
        )
        return check(found)

    async def form_token(self, path: str = "/") -> str:
        """The token in the forms of a page."""
        page = (await self.get(path)).text
        token: str = re.findall(r'name="form_token" value="([0-9a-f]+)"', page)[0]
        return token


def check(found: Response) -> Response:
    """Check what every answer must have: the headers, and nothing that the policy forbids."""
    headers = found.headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    is_static = "/static/" in str(found.url)
    assert headers["cache-control"] == "no-store" or is_static
    if headers.get("content-type", "").startswith("text/html"):
        page = found.text
        assert "Traceback" not in page
        _Tags().feed(page)
        # Nothing that turns or hides the text beside it.
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f]", _visible(page))
    return found


class _Tags(HTMLParser):
    """Checks each tag as a browser reads it."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert tag in _TAGS, f"<{tag}>"
        assert tag != "script" or "src" in attributes
        for name, value in attributes.items():
            assert name != "style", "an inline style"
            assert not name.startswith(("on", "hx-on", "hx-vals", "hx-vars")), name
            if name in ("src", "href", "action", "hx-get"):
                assert value is not None
                assert value.startswith(("/", "#")), value
                assert not value.startswith("//"), value


def _visible(page: str) -> str:
    """The page without the values of attributes, which nobody reads."""
    return re.sub(r'="[^"]*"', '=""', page)


def text_of(page: str) -> str:
    """What people read of a page."""
    body = page.partition("<main")[2] or page
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


@asynccontextmanager
async def opened(ledger: CreditLedger, **options: Any) -> AsyncIterator[Browser]:
    """A browser that has come in by the printed link."""
    gate = LinkGate("ann")
    pages = application(ledger, gate=gate, hosts=HOSTS, **options)
    async with AsyncClient(
        transport=ASGITransport(pages), base_url="http://127.0.0.1:8480"
    ) as client:
        browser = Browser(client, "")
        entered = await browser.get("/enter", token=gate.token)
        assert entered.status_code == 303
        yield browser
