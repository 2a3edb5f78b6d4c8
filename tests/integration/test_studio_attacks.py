"""What goes wrong between an action's form and its result: attacks, accidents, other operators.

Each gets a page that says what happened and what to do, and nothing is done by it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from httpx import ASGITransport, AsyncClient, Response
from pymongo import AsyncMongoClient
from starlette.requests import Request

from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.studio import Operator, studio
from credit_mongo.studio.actions.kinds import ACTIONS
from tests.integration.promises import Client, Database, Row, check_promises, failing
from tests.integration.studio_browser import HOSTILE_TEXTS, Browser, opened, text_of
from tests.integration.studio_forms import Desk, hidden_of, problem_of

LOOPBACK = "http://127.0.0.1:8480"
APP_NAME = "studio-under-attack"


def grants(browser: Browser) -> Desk:
    """The form that gives bob credits."""
    return Desk(browser, "/grant", user="bob")


async def previewed(browser: Browser) -> dict[str, str]:
    """The form that would confirm a grant of 5 credits to bob."""
    return hidden_of((await grants(browser).preview(amount="5")).text, "confirm")


async def refused(ledger: CreditLedger, answer: Response, status: int, *words: str) -> None:
    """Check that a page says what happened and what to do, and that bob got nothing."""
    text = text_of(answer.text)
    assert answer.status_code == status, text
    for word in words:
        assert word in text
    assert (await ledger.get_user("bob")).seq == 1


@pytest.fixture
def credit_config(config: CreditConfig) -> CreditConfig:
    """Short enough that an outage can be waited for."""
    return config.model_copy(update={"operation_timeout_seconds": 2.0})


FOREIGN = {
    "another site": {"origin": "http://evil.example"},
    "another port": {"origin": "http://127.0.0.1:3000"},
    "a sandboxed page": {"origin": "null"},
    "a browser that says so": {"sec-fetch-site": "cross-site"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN.keys())
async def test_another_site_can_confirm_nothing(
    ledger: CreditLedger, headers: dict[str, str]
) -> None:
    """Even with a form that it has stolen whole."""
    await ledger.create_user("bob")
    async with opened(ledger) as browser:
        form = await previewed(browser)
        sent = await browser.send("/grant", form, **headers)
        await refused(ledger, sent, 403, "Nothing was changed", "Go back, reload the page")


async def test_a_stolen_form_is_worthless_in_another_session(ledger: CreditLedger) -> None:
    """With its own token or with the thief's."""
    await ledger.create_user("bob")
    async with opened(ledger) as browser, opened(ledger) as thief:
        form, own = await previewed(browser), await grants(thief).form()
        sent = await thief.send("/grant", form)
        await refused(ledger, sent, 403, "another site has sent it")
        sent = await thief.send("/grant", {**form, "form_token": own["form_token"]})
        await refused(ledger, sent, 400, "it is from another session", "Open the form again")


async def test_a_seal_counts_in_its_session_and_for_its_operator_alone(
    ledger: CreditLedger,
) -> None:
    """Of one application, where all seals have one secret."""
    await ledger.create_user("bob")
    app = studio(ledger, authorize=lambda request: request.headers.get("x-operator"))
    transport = ASGITransport(app)
    async with (
        AsyncClient(transport=transport, base_url=LOOPBACK) as mine,
        AsyncClient(transport=transport, base_url=LOOPBACK) as theirs,
    ):
        browser, thief = Browser(mine, ""), Browser(theirs, "")
        mine.headers["x-operator"] = "ann"
        form = await previewed(browser)
        theirs.headers["x-operator"] = "ann"
        own = await grants(thief).form()
        sent = await thief.send("/grant", {**form, "form_token": own["form_token"]})
        await refused(ledger, sent, 400, "it is from another session")
        mine.headers["x-operator"] = "eve"
        own = await grants(browser).form()
        sent = await browser.send("/grant", form)
        await refused(ledger, sent, 403, "Nothing was changed")
        sent = await browser.send("/grant", {**form, "form_token": own["form_token"]})
        await refused(ledger, sent, 400, "it is from another session")


async def test_a_tampered_form_does_nothing(ledger: CreditLedger) -> None:
    """User, key and preview are in the seal. What stands beside it is not looked at."""
    await ledger.create_user("bob")
    await ledger.create_user("eve")
    async with opened(ledger) as browser:
        form = await previewed(browser)
        seal = form["seal"]
        payload, _, signature = seal.partition(".")
        for forged in ("", "x", f"{payload[:-2]}AA.{signature}", seal[:-1], seal.swapcase(), "é"):
            sent = await browser.send("/grant", {**form, "seal": forged})
            await refused(ledger, sent, 400, "it was changed", "Open the form again")
        other = await browser.send("/refund?user=bob", form)
        await refused(ledger, other, 400, "belongs to another page")
        unseen = await grants(browser).form()
        sent = await browser.send("/grant", {**unseen, "step": "confirm", "amount": "5"})
        await refused(ledger, sent, 400, "has not been previewed")
        sent = await browser.send("/grant", {**form, "step": "forget"})
        await refused(ledger, sent, 400, "must be preview, change or confirm")
        beside = {"user": "eve", "user_id": "eve", "amount": "999", "idempotency_key": "mine"}
        sent = await browser.send("/grant?user=eve", {**form, **beside})
        assert sent.status_code == 303
    assert (await ledger.get_user("eve")).seq == 1
    assert (await ledger.get_user("bob")).credits == 5


async def test_a_result_cannot_be_made_up(ledger: CreditLedger) -> None:
    """A link to a result that never was says nothing of the sort."""
    await ledger.create_user("bob")
    async with opened(ledger) as browser:
        for seal in ("", "x", (await previewed(browser))["seal"]):
            shown = await browser.get("/done", result=seal)
            assert shown.status_code >= 400, text_of(shown.text)
            assert "Balance" not in text_of(shown.text)


async def test_an_old_form_is_not_taken(
    ledger: CreditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an hour, and after an update of Studio."""
    await ledger.create_user("bob")
    async with opened(ledger) as browser:
        form = await previewed(browser)
        with monkeypatch.context() as patch:
            patch.setattr("credit_mongo.studio.actions.desk._VERSION", 2)
            sent = await browser.send("/grant", form)
            await refused(ledger, sent, 409, "updated since this form", "Open the form again")
        with monkeypatch.context() as patch:
            patch.setattr("credit_mongo.studio.actions.desk._FORM_SECONDS", -1)
            sent = await browser.send("/grant", form)
            await refused(ledger, sent, 400, "This form is too old", "Open the form again")


async def test_a_form_of_before_a_restart_asks_to_come_in_again(ledger: CreditLedger) -> None:
    """The new process has another secret: neither the session nor the form counts."""
    await ledger.create_user("bob")
    async with opened(ledger) as browser, opened(ledger) as restarted:
        form = await previewed(browser)
        restarted.client.cookies = browser.client.cookies
        sent = await restarted.send("/grant", form)
        await refused(ledger, sent, 401, "The form that you sent has changed nothing")


async def test_another_operator_s_change_is_shown_before_yours_is_done(
    ledger: CreditLedger, database: Database
) -> None:
    """Two people answer the same complaint: the second learns of it, and decides."""
    await ledger.create_user("bob", credits=100)
    async with opened(ledger) as one, opened(ledger) as other:
        mine = await previewed(one)
        await grants(other).do(amount="7", reason="the same case")
        await ledger.charge("bob", "generate-post", amount=50)
        shown = await one.send("/grant", mine)
        text = text_of(shown.text)
        assert shown.status_code == 409
        assert "The account was changed since your preview Nothing was done yet" in text
        assert "grant +7, grant , by ann : the same case" in text
        assert "charge" not in text
        assert "Balance 57 → 62" in text
        await ledger.charge("bob", "generate-post", amount=1)
        desk = grants(one)
        assert "Balance 56 → 61" in await desk.result(await desk.confirm(shown))
        assert "Balance 56 → 61" in await desk.result(await one.send("/grant", mine))
    await check_promises(database)


async def test_what_was_settled_meanwhile_is_refused_by_the_ledger(ledger: CreditLedger) -> None:
    """A hold that was captured, and a charge that somebody else has refunded."""
    await ledger.create_user("bob", credits=100)
    hold = await ledger.place_hold("bob", "generate-post", amount=40, ttl=600)
    charge = await ledger.charge("bob", "generate-post", amount=30)
    async with opened(ledger) as browser:
        release = Desk(browser, "/release-hold", user="bob", hold=hold.hold_id)
        seen = await release.preview()
        await ledger.capture_hold(hold.hold_id, amount=40)
        answer = await release.confirm(seen)
        assert answer.status_code == 409
        assert "it is captured" in problem_of(answer.text)[1]
        refund = Desk(browser, "/refund", user="bob", transaction=charge.transaction_id)
        seen = await refund.preview(amount="30")
        await ledger.refund("bob", 30, action="x", transaction_id=charge.transaction_id)
        answer = await refund.confirm(seen)
        assert problem_of(answer.text)[0] == "amount"
    failed = await ledger.get_audit_log("bob", status="failed")
    assert [(row.operation, (row.metadata or {})["operator"]) for row in failed] == [
        ("refund", "ann"),
        ("release_hold", "ann"),
    ]


async def test_a_user_who_is_gone_is_said_to_be_gone(ledger: CreditLedger) -> None:
    """Erased between preview and click."""
    await ledger.create_user("bob")
    async with opened(ledger) as browser:
        form = await previewed(browser)
        await ledger.delete_user("bob")
        sent = await browser.send("/grant", form)
        assert sent.status_code == 404
        assert "No such user" in text_of(sent.text)


OUTAGES: dict[str, tuple[dict[str, Any], str]] = {
    "no answer": (
        {"failCommands": ["find", "insert", "update", "ping", "hello"], "closeConnection": True},
        "The database doesn't answer",
    ),
    "an answer that is lost": (
        {"failCommands": ["commitTransaction"], "closeConnection": True},
        "It may have happened, or not",
    ),
}


@pytest_asyncio.fixture
async def fragile(
    replica_set_uri: str, ledger: CreditLedger, database: Database
) -> AsyncIterator[Browser]:
    """Studio over a client whose commands can be made to fail."""
    async with (
        AsyncMongoClient[Row](replica_set_uri, tz_aware=True, appname=APP_NAME) as client,
        CreditLedger(client[database.name], ledger._config) as own,
        opened(own) as browser,
    ):
        yield browser


@pytest.mark.parametrize("outage", OUTAGES)
async def test_a_database_that_goes_away_leaves_a_form_to_send_again(
    client: Client, database: Database, ledger: CreditLedger, fragile: Browser, outage: str
) -> None:
    """However often it is sent, it happens once."""
    await ledger.create_user("bob")
    failures, title = OUTAGES[outage]
    form = await previewed(fragile)
    async with failing(client, APP_NAME, **failures):
        away = await fragile.send("/grant", form)
    assert away.status_code == 503
    assert title in text_of(away.text)
    assert "Send it again" in text_of(away.text)
    desk = grants(fragile)
    for each in (hidden_of(away.text, "confirm"), form):
        assert "Balance 0 → 5" in await desk.result(await fragile.send("/grant", each))
    assert (await ledger.get_user("bob")).credits == 5
    await check_promises(database)


async def test_what_was_typed_outlives_an_outage(
    client: Client, ledger: CreditLedger, fragile: Browser
) -> None:
    """The database is away when the preview is asked for: the page has all to send it again."""
    await ledger.create_user("bob")
    desk, failures = grants(fragile), OUTAGES["no answer"][0]
    form = {**await desk.form(), "amount": "5", "reason": '"><b> case', "source": "\u202ex"}
    async with failing(client, APP_NAME, **failures):
        away = await fragile.send("/grant", form)
    assert away.status_code == 503
    again = hidden_of(away.text, "preview")
    assert again == form
    preview = await fragile.send("/grant", again)
    assert "Given +5" in text_of(preview.text)
    assert "Balance 0 → 5" in await desk.result(await desk.confirm(preview))


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
async def test_hostile_texts_are_granted_as_they_are(
    ledger: CreditLedger, database: Database, text: str
) -> None:
    """As user, action, source and reason: shown as text, and stored exactly."""
    await ledger.create_user(text)
    async with opened(ledger) as browser:
        desk = Desk(browser, "/grant", user=text)
        await desk.do(amount="5", action=text, source=text, reason=text)
    row = (await ledger.get_history(text, limit=1))[0]
    assert (row.action, row.metadata) == (text, {"operator": "ann", "reason": text})
    assert (await ledger.get_user(text)).lots[0].source == text


# Who may not


PATHS = {
    "/grant": {"user": "bob"},
    "/refund": {"user": "bob"},
    "/revoke": {"user": "bob", "transaction": "0" * 24},
    "/release-hold": {"user": "bob", "hold": "0" * 24},
    "/change-tier": {"user": "bob"},
}


def test_every_action_is_tried() -> None:
    """The paths above are all."""
    assert {action.path for action in ACTIONS} == PATHS.keys()


@pytest.mark.parametrize(
    ("settings", "options"),
    [({}, {"read_only": True}), ({"idempotency": {"enabled": False}}, {})],
    ids=["--read-only", "without keys"],
)
async def test_a_studio_that_only_reads_has_no_actions(
    database: Database,
    ledger: CreditLedger,
    config: CreditConfig,
    settings: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """There is no such page, and nothing leads to one. Nor without idempotency keys."""
    await ledger.create_user("bob", credits=100)
    await ledger.grant("bob", 5, action="gift", source="x")
    await ledger.place_hold("bob", "generate-post", amount=4, ttl=600)
    own = CreditConfig(**{**config.model_dump(), **settings})
    async with CreditLedger(database, own) as reading, opened(reading, **options) as browser:
        page = await browser.page("/user", id="bob")
        token = await browser.form_token()
        for path, query in PATHS.items():
            assert f'"{path}?' not in page
            assert (await browser.get(path, **query)).status_code == 404
            assert (await browser.send(path, {"form_token": token})).status_code == 404


async def test_an_application_s_operator_who_only_reads_changes_nothing(
    ledger: CreditLedger,
) -> None:
    """``authorize`` says so, with each request: a right that was taken away is gone at once."""
    await ledger.create_user("bob", credits=100)
    is_read_only = False

    def authorize(request: Request) -> Operator:
        return Operator("ann", read_only=is_read_only)

    app = studio(ledger, authorize=authorize)
    async with AsyncClient(transport=ASGITransport(app), base_url=LOOPBACK) as client:
        browser = Browser(client, "")
        form = await previewed(browser)
        is_read_only = True
        sent = await browser.send("/grant", form)
        await refused(ledger, sent, 403, "You may look, but change nothing")
        page = await browser.page("/user", id="bob")
        for path, query in PATHS.items():
            assert f'"{path}?' not in page
            assert (await browser.get(path, **query)).status_code == 403
        is_read_only = False
        assert (await browser.send("/grant", form)).status_code == 303
