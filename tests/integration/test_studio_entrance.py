"""Who may see Studio, from where, and what a browser may do with its pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from starlette.exceptions import HTTPException
from starlette.requests import Request

from credit_mongo import ConfigurationError, CreditLedger
from credit_mongo.studio import studio
from credit_mongo.studio.application import application
from credit_mongo.studio.gates import Gate, LinkGate, PasswordGate
from tests.integration.studio_browser import HOSTS, Browser, check, opened, text_of

PASSWORD = "correct horse battery"  # noqa: S105
LOOPBACK = "http://127.0.0.1:8480"


@asynccontextmanager
async def visited(app: Any, url: str = LOOPBACK, base: str = "") -> AsyncIterator[Browser]:
    """A browser that nobody has let in yet."""
    async with AsyncClient(transport=ASGITransport(app), base_url=url) as client:
        yield Browser(client, base)


def behind(gate: Gate, ledger: CreditLedger) -> Any:
    """Studio behind a gate, on this machine."""
    return application(ledger, gate=gate, hosts=HOSTS)


async def test_the_link_works_once_and_leaves_a_strict_cookie(ledger: CreditLedger) -> None:
    """The token is exchanged for a cookie by a redirect, and is worthless afterwards."""
    gate = LinkGate("ann")
    token, app = gate.token, behind(gate, ledger)
    async with visited(app) as browser, visited(app) as thief:
        assert (await browser.get("/")).status_code == 401
        entered = await browser.get("/enter", token=token)
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        assert token not in cookie
        assert "ann" in await browser.page("/")
        refused = await thief.get("/enter", token=token)
        assert refused.status_code == 401
        assert "no longer works" in refused.text
        assert (await thief.get("/")).status_code == 401


async def test_a_link_in_another_page_leads_in_without_the_redirect(ledger: CreditLedger) -> None:
    """Browsers send no strict cookie with a redirect that another site began."""
    gate = LinkGate("ann")
    async with visited(behind(gate, ledger)) as browser:
        browser.client.headers["sec-fetch-site"] = "cross-site"
        entered = await browser.get("/enter", token=gate.token)
        assert entered.status_code == 200
        assert 'http-equiv="refresh"' in entered.text


async def test_looking_ahead_does_not_use_the_link_up(ledger: CreditLedger) -> None:
    """HEAD asks only whether something is there."""
    gate = LinkGate("ann")
    async with visited(behind(gate, ledger)) as browser:
        await browser.client.head("/enter", params={"token": gate.token})
        assert (await browser.get("/enter", token=gate.token)).status_code == 303


async def test_an_old_link_opens_nothing(
    ledger: CreditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that nobody has used for ten minutes is worthless."""
    monkeypatch.setattr("credit_mongo.studio.gates._LINK_SECONDS", -1.0)
    gate = LinkGate("ann")
    async with visited(behind(gate, ledger)) as browser:
        assert (await browser.get("/enter", token=gate.token)).status_code == 401


async def test_guessing_is_slowed_down(ledger: CreditLedger) -> None:
    """After five wrong tokens within a minute, even the right one has to wait."""
    gate = LinkGate("ann")
    async with visited(behind(gate, ledger)) as browser:
        for _ in range(5):
            assert (await browser.get("/enter", token="wrong")).status_code == 401  # noqa: S106
        refused = await browser.get("/enter", token=gate.token)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 60


async def test_a_forged_or_old_cookie_is_no_session(
    ledger: CreditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cookie is signed, and ends after twelve hours."""
    async with opened(ledger) as browser:
        [(name, value)] = browser.client.cookies.items()
        payload, _, signature = value.rpartition(".")
        for forged in ("", "x", payload, f"{payload[::-1]}.{signature}", f"{value}x", "é"):
            browser.client.cookies.clear()
            browser.client.headers["cookie"] = f"{name}={forged}".encode().decode("latin-1")
            assert (await browser.get("/")).status_code == 401, forged
        browser.client.headers["cookie"] = f"{name}={value}"
        assert (await browser.get("/")).status_code == 200
        monkeypatch.setattr("credit_mongo.studio.security._SESSION_SECONDS", -1)
        assert (await browser.get("/")).status_code == 401


async def test_two_studios_do_not_take_each_others_cookies(ledger: CreditLedger) -> None:
    """Cookies of one machine are sent to all its ports."""
    async with opened(ledger) as one, opened(ledger) as other:
        [mine], [theirs] = one.client.cookies.keys(), other.client.cookies.keys()
        assert mine != theirs
        other.client.cookies.clear()
        other.client.cookies.update(one.client.cookies)
        assert (await other.get("/")).status_code == 401


async def test_signing_out_ends_the_session(ledger: CreditLedger) -> None:
    """Only by the button, and the browser's cookie says nothing any more."""
    async with opened(ledger) as browser:
        token = await browser.form_token()
        assert (await browser.get("/sign-out")).status_code == 303
        assert (await browser.send("/sign-out", {"form_token": token})).status_code == 200
        assert (await browser.get("/")).status_code == 401


async def test_a_cookie_that_was_signed_out_opens_nothing(ledger: CreditLedger) -> None:
    """Even if somebody has copied it before. Other sessions go on."""
    async with visited(behind(PasswordGate(PASSWORD), ledger)) as browser:

        async def come_in() -> None:
            browser.client.cookies.clear()
            form = {"form_token": await browser.form_token(), "name": "ann", "password": PASSWORD}
            assert (await browser.send("/sign-in", form)).status_code == 303

        await come_in()
        other = dict(browser.client.cookies)
        await come_in()
        copied = dict(browser.client.cookies)
        token = await browser.form_token()
        assert (await browser.send("/sign-out", {"form_token": token})).status_code == 200
        browser.client.cookies = copied
        assert (await browser.get("/")).status_code == 401
        assert (await browser.send("/sign-out", {"form_token": token})).status_code == 401
        browser.client.cookies = other
        assert (await browser.get("/")).status_code == 200


async def test_a_cookie_that_was_signed_out_is_never_forgotten(
    ledger: CreditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of ended sessions is bounded: beyond its bound, all older sessions end."""
    monkeypatch.setattr("credit_mongo.studio.security._MOST_ENDED_SESSIONS", 1)
    async with visited(behind(PasswordGate(PASSWORD), ledger)) as browser:
        ended = []
        for _ in range(3):
            browser.client.cookies.clear()
            form = {"form_token": await browser.form_token(), "name": "ann", "password": PASSWORD}
            assert (await browser.send("/sign-in", form)).status_code == 303
            ended.append(dict(browser.client.cookies))
            # Sessions count in whole seconds: those of the same second end as well.
            await asyncio.sleep(1.01)
        for cookies in ended:
            browser.client.cookies = cookies
            form = {"form_token": await browser.form_token()}
            await browser.send("/sign-out", form)
        for cookies in ended:
            browser.client.cookies = cookies
            assert (await browser.get("/")).status_code == 401


async def test_a_password_lets_in_under_the_name_that_was_given(ledger: CreditLedger) -> None:
    """The form goes back to the page that was asked for, and nowhere else."""
    async with visited(behind(PasswordGate(PASSWORD), ledger)) as browser:
        asked = await browser.get("/users", search="ann")
        assert asked.status_code == 401
        assert 'value="/users?search=ann"' in asked.text
        form = {"form_token": await browser.form_token("/users"), "name": "Béa", "next": "/users"}
        wrong = await browser.send("/sign-in", {**form, "password": "wrong"})
        assert wrong.status_code == 401
        assert "not the password" in wrong.text
        done = await browser.send("/sign-in", {**form, "password": PASSWORD})
        assert (done.status_code, done.headers["location"]) == (303, "/users")
        assert "Béa" in await browser.page("/")


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "http://evil.example", "x"])
async def test_a_form_never_leads_to_another_site(ledger: CreditLedger, path: str) -> None:
    """Whatever address the form names."""
    async with visited(behind(PasswordGate(PASSWORD), ledger)) as browser:
        token = await browser.form_token("/users")
        form = {"form_token": token, "name": "ann", "password": PASSWORD, "next": path}
        assert (await browser.send("/sign-in", form)).headers["location"] == "/"


async def test_guessing_a_password_is_slowed_down(ledger: CreditLedger) -> None:
    """After five wrong ones within a minute, even the right one has to wait."""
    async with visited(behind(PasswordGate(PASSWORD), ledger)) as browser:
        form = {"form_token": await browser.form_token(), "name": "ann"}
        for _ in range(5):
            await browser.send("/sign-in", {**form, "password": "wrong"})
        refused = await browser.send("/sign-in", {**form, "password": PASSWORD})
        assert refused.status_code == 429


def test_a_short_password_is_refused() -> None:
    """Everybody in the network could try."""
    with pytest.raises(ConfigurationError, match="at least 12 characters, not 6"):
        PasswordGate("secret")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8480", "127.0.0.1.evil.example", "", "[::1", "a@b"]
)
async def test_another_name_of_this_machine_is_refused(ledger: CreditLedger, host: str) -> None:
    """A page of another site, whose name was pointed here, sees nothing."""
    async with opened(ledger) as browser:
        browser.client.headers["host"] = host
        for path in ("/", "/static/studio.css", "/enter"):
            assert (await browser.get(path)).status_code == 421


FOREIGN = {
    "another site": {"origin": "http://evil.example"},
    "another port": {"origin": "http://127.0.0.1:3000"},
    "a sandboxed page": {"origin": "null"},
    "a browser that says so": {"sec-fetch-site": "same-site"},
    "nobody says where from": {"origin": ""},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN.keys())
async def test_forms_of_other_sites_are_refused(
    ledger: CreditLedger, headers: dict[str, str]
) -> None:
    """Even with the token."""
    async with opened(ledger) as browser:
        form = {"form_token": await browser.form_token()}
        assert (await browser.send("/sign-out", form, **headers)).status_code == 403
        assert (await browser.get("/")).status_code == 200


async def test_forms_need_the_token_of_their_session(ledger: CreditLedger) -> None:
    """Without it, or with that of another session, nothing is done."""
    async with opened(ledger) as browser, opened(ledger) as other:
        for token in ("", "x" * 64, await other.form_token(), "é"):
            sent = await browser.send("/sign-out", {"form_token": token})
            assert sent.status_code == 403
        assert (await browser.send("/sign-out", {"a": "b"})).status_code == 403


async def test_forms_that_no_browser_sends_are_refused(ledger: CreditLedger) -> None:
    """Too large, of another type, broken, with a field twice, with too many."""
    async with opened(ledger) as browser:
        token, post = await browser.form_token(), browser.client.post
        encoded = {"origin": LOOPBACK, "content-type": "application/x-www-form-urlencoded"}
        bodies = {
            "x=" + "y" * 70_000: 413,
            "&".join(f"f{n}=1" for n in range(200)): 400,
            f"form_token={token}&a=1&a=2": 400,
            f"form_token={token}&a=%ff": 400,
            "a": 400,
        }
        for body, status in bodies.items():
            found = check(await post("/sign-out", content=body, headers=encoded))
            assert found.status_code == status, body[:40]
        as_json = {"origin": LOOPBACK, "content-type": "application/json"}
        assert check(await post("/sign-out", content="{}", headers=as_json)).status_code == 415
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            found = check(await browser.client.request(method, "/", headers=encoded))
            assert found.status_code >= 400


async def test_static_files_may_be_kept_and_pages_may_not(ledger: CreditLedger) -> None:
    """The addresses of files change with their content. Nothing beside them can be read."""
    async with opened(ledger) as browser:
        page = await browser.page("/")
        for name in ("studio.css", "studio.js", "vendor/htmx-2.0.11.min.js", "icon.svg"):
            assert f"/static/{name}?v=" in page
            found = await browser.get(f"/static/{name}")
            assert found.status_code == 200
            assert "immutable" in found.headers["cache-control"]
        for path in ("/static/../security.py", "/static/%2e%2e/security.py", "/static/", "/static"):
            assert (await browser.client.get(path)).status_code in (404, 405), path


# In an application


async def test_it_works_under_a_prefix_in_an_application(ledger: CreditLedger) -> None:
    """In FastAPI, behind a proxy's prefix: each link stays under both, and the application says
    who may look."""
    await ledger.create_user("ann", credits=10)

    async def operator_of(request: Request) -> str | None:
        name = request.headers.get("x-operator")
        return None if name is None else name.encode("latin-1").decode()

    app = FastAPI()
    app.mount("/credits", studio(ledger, authorize=operator_of))
    behind_a_proxy = ASGITransport(app, root_path="/api")
    async with AsyncClient(transport=behind_a_proxy, base_url=LOOPBACK) as client:
        browser = Browser(client, "/api/credits")
        refused = await browser.get("/")
        assert refused.status_code == 403
        assert "doesn't know you" in text_of(refused.text)
        browser.client.headers["x-operator"] = "Béa".encode().decode("latin-1")
        page = await browser.page("/users")
        assert 'href="/api/credits/user?id=ann"' in page
        assert page.count("/api/credits/") > 5
        assert 'href="/users' not in page
        assert "Sign out" not in page
        cookie = (await browser.get("/")).headers.get("set-cookie", "")
        assert "Path=/api/credits" in cookie or not cookie
        assert (await browser.get("/nothing")).status_code == 404


async def test_an_application_can_send_people_to_its_own_login(ledger: CreditLedger) -> None:
    """HTTPException passes with its status and headers."""

    def authorize(request: Request) -> str | None:
        raise HTTPException(303, headers={"location": "/login"})

    async with visited(studio(ledger, authorize=authorize)) as browser:
        found = await browser.get("/users")
        assert (found.status_code, found.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("answer", [True, 7, "", "x" * 256, b"ann", "a\nb"])
async def test_an_answer_that_is_no_name_lets_nobody_in(ledger: CreditLedger, answer: Any) -> None:
    """What a mistaken function returns is taken for no permission."""
    async with visited(studio(ledger, authorize=lambda _: answer)) as browser:
        found = await browser.get("/")
        assert found.status_code == 500
        assert "operator" in found.text
        assert "Balance" not in found.text


async def test_a_function_that_fails_lets_nobody_in(
    ledger: CreditLedger, caplog: pytest.LogCaptureFixture
) -> None:
    """The page tells the error's type alone; its text may be a secret. So does the log."""

    def authorize(request: Request) -> str | None:
        raise KeyError("opensesame")

    async with visited(studio(ledger, authorize=authorize)) as browser:
        found = await browser.get("/")
        assert found.status_code == 500
        assert "KeyError" in text_of(found.text)
        assert "opensesame" not in found.text
    assert "KeyError" in caplog.text
    assert "opensesame" not in caplog.text.replace('raise KeyError("opensesame")', "")


def test_an_application_s_mistakes_are_named(ledger: CreditLedger) -> None:
    """Before there is a page."""
    with pytest.raises(ConfigurationError, match="ledger: must be a CreditLedger, not str"):
        studio("ledger", authorize=lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="authorize: must be a function"):
        studio(ledger, authorize=None)  # type: ignore[arg-type]
