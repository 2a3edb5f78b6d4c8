"""Each page of Studio: what it shows, of whatever is in the ledger and in the address."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from html import unescape
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from pymongo import AsyncMongoClient

from credit_mongo import CreditConfig, CreditError, CreditLedger
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.usage.activity import Activity, activity_of
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.commands import run, where
from tests.integration.promises import Client, Database
from tests.integration.studio_browser import HOSTILE_TEXTS, Browser, opened, text_of

EVERYWHERE = (
    *("/", "/overview/figures", "/overview/live", "/users", "/refused", "/holds", "/audit-log"),
    *("/archives", "/verification", "/settings"),
)
"""The pages without questions."""
NOW = datetime.now(timezone.utc)


def copied(page: str) -> set[str]:
    """What the buttons of a page copy: ids, exactly as they are."""
    return {unescape(text) for text in re.findall(r'data-copy="([^"]*)"', page)}


async def fill(ledger: CreditLedger, user_id: str, action: str = "generate-post") -> str:
    """A user with lots, a hold, refunds and refused attempts. Returns a charge's id."""
    await ledger.create_user(user_id, credits=1000, membership_tier="premium")
    await ledger.grant(
        user_id, 70, action=action, expires_at=NOW + timedelta(days=9), source=action[:255]
    )
    charged = await ledger.charge(
        user_id, action, amount=30, idempotency_key=f"k {user_id}"[:255], metadata={action: user_id}
    )
    await ledger.refund(user_id, 10, action=action, transaction_id=charged.transaction_id)
    await ledger.place_hold(user_id, "generate-post", amount=20, ttl=600)
    with pytest.raises(CreditError):
        await ledger.charge(user_id, "generate-post", amount=10**6)
    return charged.transaction_id


@pytest.mark.parametrize("path", EVERYWHERE)
async def test_a_ledger_without_users_has_all_pages(ledger: CreditLedger, path: str) -> None:
    """They say that there is nothing yet."""
    async with opened(ledger) as browser:
        assert await browser.page(path)


async def test_the_overview_sums_up_and_lists_what_is_new(ledger: CreditLedger) -> None:
    """Granted, spent, refunded, held, refused; the figures come when the page's script asks."""
    await fill(ledger, "ann")
    async with opened(ledger) as browser:
        page = await browser.page("/")
        assert 'hx-get="/overview/figures?period=week"' in page
        assert "Active holds 1 Held credits 20" in text_of(page)
        assert "Newest transactions" in page
        for text in (
            text_of(await browser.page("/overview/figures", period="day")),
            text_of(await browser.page("/", **{"with": "figures"})),
        ):
            assert "granted 1,070" in text
            assert "spent 30 0 before refunded 10 0 before net spend 20" in text
            assert "active users 1" in text
            assert "refused attempts 1" in text
            assert "Spent by action" in text
        live = await browser.page("/overview/live")
        assert 'hx-swap-oob="true"' in live


async def test_many_who_look_at_once_cost_one_reading(
    ledger: CreditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are kept for a minute, what happens now for two seconds."""
    readings = 0

    async def count(database: LedgerDatabase, now: datetime) -> Activity:
        nonlocal readings
        readings += 1
        return await activity_of(database, now)

    monkeypatch.setattr("credit_mongo.studio.reads.activity_of", count)
    async with opened(ledger) as browser:
        for _ in range(5):
            await browser.page("/overview/live")
    assert readings == 1


async def test_users_are_found_by_the_beginning_of_their_id(ledger: CreditLedger) -> None:
    """In the order of ids, page by page, each user once."""
    ids = [f"user {n:03}" for n in range(60)] + ["other", "user", "uses"]
    for user_id in ids:
        await ledger.create_user(user_id, credits=len(user_id))
    async with opened(ledger) as browser:
        page = await browser.page("/users", search="user")
        found = re.findall(r'data-copy="([^"]*)"', page)
        assert found == sorted(user for user in ids if user.startswith("user"))[:50]
        link = re.findall(r'href="([^"]*)" rel="next"', page)[0]
        rest = re.findall(r'data-copy="([^"]*)"', await browser.page(unescape(link)))
        assert sorted(found + rest) == sorted(user for user in ids if user.startswith("user"))
        assert "No user fits" in await browser.page("/users", search="nobody")
        part = await browser.client.get("/users?search=uses", headers={"hx-request": "true"})
        assert "<main" not in part.text
        assert copied(part.text) == {"uses"}


async def test_users_are_filtered_by_tier_balance_and_activity(ledger: CreditLedger) -> None:
    """A balance is as of now: without lots that have ended."""
    await ledger.create_user("free", credits=5, membership_tier="free")
    await ledger.create_user("rich", credits=900, membership_tier="premium")
    await ledger.create_user("debt", credits=0)
    await ledger.set_overdraft("debt", 50)
    await ledger.charge("debt", "generate-post", amount=50)
    async with opened(ledger) as browser:
        assert copied(await browser.page("/users", tier="free")) == {"free"}
        assert copied(await browser.page("/users", least="5")) == {"free", "rich"}
        assert copied(await browser.page("/users", most="5")) == {"free", "debt"}
        assert copied(await browser.page("/users", active="1")) == {"free", "rich", "debt"}
        assert copied(await browser.page("/users", tier="free", least="6")) == set()


async def test_a_search_through_many_users_ends_and_goes_on(
    ledger: CreditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that few users pass reads so many a page, and the next page reads on from there."""
    monkeypatch.setattr("credit_mongo.storage.listings.MOST_EXAMINED", 10)
    for n in range(25):
        await ledger.create_user(f"u{n:02}", credits=n)
    async with opened(ledger) as browser:
        found, link = [], "/users?least=21"
        pages = 0
        while link:
            page = await browser.page(link)
            found += re.findall(r'data-copy="([^"]*)"', page)
            links = re.findall(r'href="([^"]*)" rel="next"', page)
            link = unescape(links[0]) if links else ""
            pages += 1
        assert (found, pages) == (["u21", "u22", "u23", "u24"], 3)


async def test_users_are_sorted_by_balance(
    ledger: CreditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways, with each filter, page by page, each user once, also with equal balances."""
    monkeypatch.setattr("credit_mongo.studio.pages.users._LIMIT", 3)
    balances = {f"user {n}": n % 3 * 10 for n in range(10)}
    for user_id, balance in balances.items():
        await ledger.create_user(user_id, credits=balance, membership_tier="premium")
    await ledger.create_user("other", credits=99, membership_tier="free")
    highest = sorted(balances, key=lambda each: (-balances[each], each))
    lowest = sorted(balances, key=lambda each: (balances[each], each))
    async with opened(ledger) as browser:
        pages = await all_pages(browser, "/users?search=user&order=highest")
        assert (joined(pages), [len(page) for page in pages]) == (highest, [3, 3, 3, 1])
        assert joined(await all_pages(browser, "/users?tier=premium&order=lowest")) == lowest
        assert joined(await all_pages(browser, "/users?order=highest")) == ["other", *highest]
        few = joined(await all_pages(browser, "/users?order=highest&least=20&active=1"))
        assert few == ["other", *highest[:3]]


async def test_more_users_than_can_be_sorted_are_not_sorted_in_part(
    ledger: CreditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The highest balance would not be the highest. The page says how to narrow the search."""
    monkeypatch.setattr("credit_mongo.storage.listings.MOST_EXAMINED", 5)
    for n in range(6):
        await ledger.create_user(f"user {n}", credits=n, membership_tier="premium")
    await ledger.create_user("zoe", credits=1)
    async with opened(ledger) as browser:
        for question in ({}, {"tier": "premium"}, {"search": "user"}):
            page = await browser.page("/users", order="highest", **question)
            assert copied(page) == set()
            assert "Narrow the search" in text_of(page)
        page = await browser.page("/users", order="highest", search="zoe")
        assert copied(page) == {"zoe"}


async def test_a_field_is_searched_page_by_page_with_each_filter(
    ledger: CreditLedger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each user once, also those who share a text, in the order of the texts."""
    monkeypatch.setattr("credit_mongo.studio.pages.users._LIMIT", 2)
    mails = {"1": "b@x", "2": "a@x", "3": "a@x", "4": "a@x", "5": "a@y", "6": "c"}
    for user_id, mail in mails.items():
        await ledger.create_user(user_id, credits=int(user_id), membership_tier="premium")
        await database["users"].update_one({"_id": user_id}, {"$set": {"email": mail}})
    await database["users"].create_index("email")
    async with opened(ledger, search_fields=("email",)) as browser:
        found = await all_pages(browser, "/users?by=email&search=a")
        assert found == [["2", "3"], ["4", "5"]]
        assert joined(await all_pages(browser, "/users?by=email&search=a&least=4")) == ["4", "5"]
        assert joined(await all_pages(browser, "/users?by=email&search=a&tier=free")) == []
        highest = await all_pages(browser, "/users?by=email&search=a&order=highest")
        assert highest == [["5", "4"], ["3", "2"]]
        monkeypatch.setattr("credit_mongo.storage.listings.MOST_EXAMINED", 3)
        found = await all_pages(browser, "/users?by=email&search=a")
        assert joined(found) == ["2", "3", "4"]
        assert "type more of it" in text_of(await browser.page("/users?by=email&search=a&most=0"))


async def test_users_are_found_by_a_field_that_has_an_index(
    ledger: CreditLedger, database: Database
) -> None:
    """Without an index, the page says so, and nothing is read."""
    await ledger.create_user("7", credits=5)
    await database["users"].update_one({"_id": "7"}, {"$set": {"email": "ann@x.org"}})
    async with opened(ledger, search_fields=("email",)) as browser:
        assert "no index that begins with it" in text_of(await browser.page("/users"))
        refused = await browser.get("/users", by="email", search="ann")
        assert refused.status_code == 400
        await database["users"].create_index("email")
        page = await browser.page("/users", by="email", search="ann@")
        assert copied(page) == {"7"}
        assert "ann@x.org" in page
        assert copied(await browser.page("/users", by="email", search="bob")) == set()
        await database["users"].drop_index("email_1")


async def test_a_user_s_page_has_the_whole_account(ledger: CreditLedger) -> None:
    """Balance, lots, holds, tier, chart, history, refused attempts."""
    charge_id = await fill(ledger, "ann")
    async with opened(ledger) as browser:
        page = await browser.page("/user", id="ann")
        text = text_of(page)
        assert "Balance 1,050" in text
        assert "Available 1,030" in text
        assert "Held 20" in text
        assert "Tier premium" in text
        assert "Last refused attempts" in text
        assert '<svg class="chart"' in page
        assert charge_id in copied(page)


async def test_a_history_is_filtered(ledger: CreditLedger) -> None:
    """By operation, action, time, and metadata, as text or as JSON."""
    await ledger.create_user("ann", credits=1000)
    for n in range(3):
        metadata = {"order": {"id": n}, "kind": "x" if n else "y z"}
        await ledger.charge("ann", "generate-post", metadata=metadata)
    await ledger.grant("ann", 5, action="gift")

    async def amounts(**query: str) -> list[str]:
        page = await browser.page("/user", id="ann", **query)
        history = page.partition('id="history"')[2]
        return re.findall(r'<td class="number (?:plus|minus|)">([^<]*)<', history)

    async with opened(ledger) as browser:
        assert len(await amounts()) == 5
        assert await amounts(operation="grant") == ["+5"]
        assert await amounts(action="gift") == ["+5"]
        assert await amounts(metadata="order.id=2") == ["−10"]  # noqa: RUF001
        assert len(await amounts(metadata="kind=x")) == 2
        assert len(await amounts(metadata="kind=y z")) == 1
        assert await amounts(metadata="order=x") == []
        assert await amounts(to="2020-01-01") == []
        assert len(await amounts(**{"from": "2020-01-01"})) == 5


async def test_a_search_through_a_long_history_ends_and_goes_on(
    ledger: CreditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter without an index reads so many rows a page."""
    monkeypatch.setattr("credit_mongo.studio.history._ROWS_AT_ONCE", 5)
    monkeypatch.setattr("credit_mongo.studio.history._MOST_ROWS", 10)
    await ledger.create_user("ann", credits=1000)
    for _ in range(14):
        await ledger.charge("ann", "generate-post")
    async with opened(ledger) as browser:
        page = await browser.page("/user", id="ann", operation="create_user")
        assert "Looked at 10 transactions" in text_of(page)
        link = unescape(re.findall(r'href="([^"]*)" rel="next"', page)[0])
        assert "+1,000" in await browser.page(link.partition("#")[0])


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
async def test_hostile_names_are_text_and_nothing_else(
    credit_config: CreditConfig, database: Database, text: str
) -> None:
    """As an id, an action, a source, a key and metadata, on every page; and links still lead to
    the right user."""
    config = CreditConfig(
        costs={text: {"default": 1}, "generate-post": {"default": 1}},
        membership=credit_config.membership,
    )
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
        charge_id = await fill(ledger, text, text)
        async with opened(ledger) as browser:
            listed = await browser.page("/users", search=text[:3])
            assert text in copied(listed)
            assert f"/user?id={quote_plus(text)}" in unescape(listed)
            page = await browser.page("/user", id=text)
            assert text in copied(page)
            for path in EVERYWHERE:
                await browser.page(path)
            for show in ("key", "metadata"):
                await browser.page("/transaction", id=charge_id, show=show)
            assert text in copied(await browser.page("/transaction", id=charge_id, show="key"))
            assert text in copied(await browser.page("/refused", user=text))
            assert text in copied(await browser.page("/audit-log", action=text))
            await browser.page("/settings", action=text)
            [hold] = await ledger.get_holds(text)
            assert text in copied(await browser.page("/hold", id=hold.hold_id))


QUESTIONS = {
    "/users?cursor=" + "x" * 3000: 400,
    "/users?cursor=%00": 400,
    "/users?search=%01": 400,
    "/users?by=password": 400,
    "/users?least=ten": 400,
    "/users?least=0.001": 400,
    "/users?least=1e999999999": 400,
    "/users?most=NaN": 400,
    "/users?active=forever": 400,
    "/users?order=random": 400,
    "/users?order=highest&cursor=x": 400,
    "/users?order=highest&cursor=99:5ann": 400,
    "/users?order=highest&cursor=-1:5ann": 400,
    "/users?order=highest&cursor=1:5": 400,
    "/users?order=highest&cursor=1:xann": 400,
    "/users?order=highest&cursor=19:9999999999999999999ann": 400,
    "/users?order=lowest&cursor=1:0ann": 200,
    "/users?tier=%00": 400,
    "/?period=century": 400,
    "/user": 400,
    "/user?id=": 400,
    "/user?id=" + "x" * 256: 400,
    "/user?id=nobody": 404,
    "/user?id=ann&cursor=x": 400,
    "/user?id=ann&cursor=%F0%9F": 400,
    "/user?id=ann&operation=theft": 400,
    "/user?id=ann&from=yesterday": 400,
    "/user?id=ann&from=2030-01-01&to=2020-01-01": 400,
    "/user?id=ann&from=0001-01-01": 200,
    "/user?id=ann&metadata=x": 400,
    "/user?id=ann&action=%7F": 400,
    "/transaction": 400,
    "/transaction?id=%00": 400,
    "/transaction?id=nothing": 404,
    "/transaction?id=000000000000000000000000": 404,
    "/hold": 400,
    "/hold?id=000000000000000000000000": 404,
    "/holds?status=stolen": 400,
    "/holds?cursor=x": 400,
    "/holds?cursor=bnVsbA": 400,
    "/refused?cursor=WzEsMF0": 400,
    "/refused?cursor=WzEwMDAwMDAwMDAwMDAwMDAwMCwxXQ": 400,
    "/refused?cursor=W1tdLDFd": 400,
    "/refused?code=%00": 400,
    "/refused?user=%00": 400,
    "/refused?user=nobody": 200,
    "/audit-log?status=x": 400,
    "/audit-log?user=nobody": 200,
    "/audit-log?user=ann&cursor=x": 400,
    "/settings?action=theft": 400,
    "/settings?action=translate&tier=x": 400,
    "/settings?action=ai-completion&v.token=ten": 200,
    "/settings?action=ai-completion&v.token=1e999999999": 200,
    "/nothing": 404,
    "/user/ann": 404,
}


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_question_that_makes_no_sense_gets_a_page_that_says_so(
    ledger: CreditLedger, question: str
) -> None:
    """With the status code for it, what is wrong and what to do."""
    await ledger.create_user("ann", credits=1)
    async with opened(ledger) as browser:
        found = await browser.get(question)
        assert found.status_code == QUESTIONS[question], text_of(found.text)
        if found.status_code != 200:
            assert 'role="alert"' in found.text


async def test_a_cursor_of_another_user_shows_nobody_else_s_rows(ledger: CreditLedger) -> None:
    """It is refused."""
    for user_id in ("ann", "bob"):
        await ledger.create_user(user_id, credits=1000)
        for _ in range(3):
            await ledger.charge(user_id, "generate-post")
    cursor = (await ledger.get_history("bob", limit=1)).next_cursor
    async with opened(ledger) as browser:
        found = await browser.get("/user", id="ann", cursor=cursor or "")
        assert found.status_code == 400
        assert "belongs to another user" in text_of(found.text)


async def test_a_database_that_goes_away_is_said_to_be_away(credit_config: CreditConfig) -> None:
    """On every page, with 503 and no traceback; for the script's parts, as a part."""
    config = credit_config.model_copy(update={"operation_timeout_seconds": 0.2})
    nobody = "mongodb://127.0.0.1:9/?replicaSet=rs0&serverSelectionTimeoutMS=100"
    client: Client = AsyncMongoClient(nobody, tz_aware=True)
    async with client:
        ledger = CreditLedger(client["shop"], config)
        async with opened(ledger) as browser:
            for path in (*EVERYWHERE[:-1], "/user?id=ann", "/transaction?id=x", "/hold?id=x"):
                found = await browser.get(path)
                assert found.status_code == 503, path
                assert "doesn't answer" in text_of(found.text)
            part = await browser.client.get("/overview/live", headers={"hx-request": "true"})
            assert part.status_code == 503
            assert "<html" not in part.text
        await ledger.close()


async def test_an_account_that_cannot_be_read_is_named(
    ledger: CreditLedger, database: Database
) -> None:
    """In the list beside the others, and on its own page."""
    await ledger.create_user("ann", credits=5)
    await ledger.create_user("bob", credits=5)
    await database["users"].update_one(
        {"_id": "bob"}, {"$set": {"seq": "seven"}}, bypass_document_validation=True
    )
    async with opened(ledger) as browser:
        listed = await browser.page("/users")
        assert copied(listed) == {"ann", "bob"}
        assert "seq is not a whole number" in text_of(listed)
        found = await browser.get("/user", id="bob")
        assert found.status_code == 500
        assert "credit-mongo verify" in text_of(found.text)


# One transaction


async def test_a_charge_says_why_it_cost_what_it_did(ledger: CreditLedger) -> None:
    """Tier, formula, variables, what the formula gives, and what was taken."""
    await ledger.create_user("ann", credits=1000, membership_tier="premium")
    charged = await ledger.charge(
        "ann", "ai-completion", variables={"token": 1234, "other": 7}, idempotency_key="secret key"
    )
    fixed = await ledger.charge("ann", "generate-post")
    given = await ledger.charge("ann", "generate-post", amount=77)
    async with opened(ledger) as browser:
        page = await browser.page("/transaction", id=charged.transaction_id)
        text = text_of(page)
        assert "Tier in force premium" in text
        assert "Formula {token} * 0.0008 + 8" in text
        assert "token 1234 It gives 8.9872 credits Taken 9 credits" in text
        assert "still the same" in text
        assert "secret key" not in page
        shown = await browser.page("/transaction", id=charged.transaction_id, show="key")
        assert "secret key" in copied(shown)
        text = text_of(await browser.page("/transaction", id=fixed.transaction_id))
        assert "This is the fixed price" in text
        text = text_of(await browser.page("/transaction", id=given.transaction_id))
        assert "The call gave this amount itself" in text
        assert "The price today: 8" in text


async def test_a_transaction_leads_to_all_that_belongs_to_it(
    ledger: CreditLedger, database: Database
) -> None:
    """The ones before and after it, refunds and what they refund, revocations; archived or not."""
    charge_id = await fill(ledger, "ann")
    granted = await ledger.grant("ann", 40, action="gift")
    await ledger.revoke(granted.transaction_id, 30, action="chargeback")
    rows = list(await ledger.get_history("ann"))
    ids = {row.operation: row.transaction_id for row in rows}
    async with opened(ledger) as browser:
        page = await browser.page("/transaction", id=charge_id)
        assert "Refunds: 10 of 30" in text_of(page)
        assert "Where the credits came from" in text_of(page)
        around = {row.transaction_id for row in rows if row.seq in (2, 3, 4)}
        assert around <= copied(page)
        refund = await browser.page("/transaction", id=ids["refund"])
        assert charge_id in copied(refund)
        assert "It refunds" in text_of(refund)
        grant = await browser.page("/transaction", id=granted.transaction_id)
        assert "Revoked: 30 of 40" in text_of(grant)
        # As the archive moves it.
        for live, archive in (("transactions", "transactions_archive"),):
            [row] = await database[live].find({"refundOf": {"$exists": True}}).to_list()
            await database[archive].insert_one(row)
            await database[live].delete_one({"_id": row["_id"]})
        assert "archived" in text_of(await browser.page("/transaction", id=ids["refund"]))
        assert "Refunds: 10 of 30" in text_of(await browser.page("/transaction", id=charge_id))
        await database["transactions_archive"].drop()


async def test_metadata_and_keys_are_shown_only_when_asked_for(ledger: CreditLedger) -> None:
    """Not in lists, and on no page that somebody only passes by."""
    await ledger.create_user("ann", credits=100, idempotency_key="key-7f3")
    secret = {"card": "4242-secret"}
    charged = await ledger.charge("ann", "translate", metadata=secret, idempotency_key="key-7f4")
    hold = await ledger.place_hold("ann", "translate", amount=3, metadata=secret)
    async with opened(ledger) as browser:
        pages = [
            *EVERYWHERE,
            "/user?id=ann",
            f"/transaction?id={charged.transaction_id}",
            f"/hold?id={hold.hold_id}",
            "/audit-log?user=ann",
        ]
        for path in pages:
            page = await browser.page(path)
            assert "4242-secret" not in page, path
            assert "key-7f" not in page, path
        shown = await browser.page("/transaction", id=charged.transaction_id, show="metadata")
        assert '"card": "4242-secret"' in text_of(shown)
        assert "4242-secret" in await browser.page("/hold", id=hold.hold_id, show="metadata")


# Lists


async def all_pages(browser: Browser, link: str) -> list[list[str]]:
    """What each page of a list copies, from the first to the last."""
    found = []
    while link:
        page = await browser.page(link)
        found.append(re.findall(r'data-copy="([^"]*)"', page))
        links = re.findall(r'href="([^"]*)" rel="next"', page)
        link = unescape(links[0]) if links else ""
    return found


def joined(pages: list[list[str]]) -> list[str]:
    """All pages as one."""
    return [each for page in pages for each in page]


async def test_lists_have_each_row_once(
    ledger: CreditLedger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page, also where many rows have the same moment."""
    for module in ("attempts.LIMIT", "pages.refused.LIMIT", "pages.audit_log.LIMIT"):
        monkeypatch.setattr(f"credit_mongo.studio.{module}", 4)
    monkeypatch.setattr("credit_mongo.studio.pages.holds._LIMIT", 4)
    await ledger.create_user("rich", credits=1000)
    for n in range(11):
        with pytest.raises(CreditError):
            await ledger.charge(f"nobody {n:02}", "translate")
        await ledger.place_hold("rich", "translate", amount=1, ttl=600)
    moment = NOW.replace(microsecond=0)
    await database["audit_logs"].update_many(
        {"userId": {"$in": [f"nobody {n:02}" for n in range(3, 9)]}},
        {"$set": {"createdAt": moment}},
    )
    async with opened(ledger) as browser:
        refused = await all_pages(browser, "/refused")
        assert sorted(joined(refused)) == [f"nobody {n:02}" for n in range(11)]
        assert [len(page) for page in refused] == [4, 4, 3]
        audits = joined(await all_pages(browser, "/audit-log"))
        assert len([each for each in audits if each.startswith("nobody")]) == 11
        holds = joined(await all_pages(browser, "/holds"))
        assert len({each for each in holds if each != "rich"}) == 11
        mine = joined(await all_pages(browser, "/audit-log?user=rich&operation=place_hold"))
        assert mine.count("rich") == 11


async def test_a_list_with_a_filter_ends_and_goes_on(
    ledger: CreditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that few rows pass reads so many a page."""
    for module in ("listings", "records"):
        monkeypatch.setattr(f"credit_mongo.storage.{module}.MOST_EXAMINED", 5)
    with pytest.raises(CreditError):
        await ledger.charge("first", "translate")
    await ledger.create_user("ann", credits=10**6)
    for n in range(12):
        with pytest.raises(CreditError):
            await ledger.charge(f"nobody {n}", "generate-post")
    async with opened(ledger) as browser:
        refused = await all_pages(browser, "/refused?action=translate")
        assert (joined(refused), len(refused)) == (["first"], 3)
        audits = await all_pages(browser, "/audit-log?action=translate")
        assert (joined(audits), len(audits)) == (["first"], 3)


async def test_refused_attempts_are_filtered(ledger: CreditLedger) -> None:
    """By code, operation, action, user and time."""
    await fill(ledger, "ann")
    with pytest.raises(CreditError):
        await ledger.charge("nobody", "translate")
    with pytest.raises(CreditError):
        await ledger.grant("nobody", 5, action="gift")

    async with opened(ledger) as browser:

        async def users(**query: str) -> list[str]:
            page = await browser.page("/refused", **query)
            return re.findall(r'data-copy="([^"]*)"', page)

        assert await users() == ["nobody", "nobody", "ann"]
        assert await users(code="INSUFFICIENT_CREDITS") == ["ann"]
        assert await users(operation="grant") == ["nobody"]
        assert await users(action="gift") == ["nobody"]
        assert await users(user="ann") == ["ann"]
        assert await users(user="ann", code="USER_NOT_FOUND") == []
        assert await users(to="2020-01-01") == []
        assert len(await users(**{"from": "2020-01-01"})) == 3


async def test_refusals_are_told_in_credits(
    database: Database, credit_config: CreditConfig
) -> None:
    """As all amounts of the page are, in each list of attempts."""
    config = credit_config.model_copy(update={"decimal_places": 2})
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=100)
        with pytest.raises(CreditError):
            await ledger.charge("ann", "generate-post", amount=123_456)
        async with opened(ledger) as browser:
            for path in ("/refused", "/refused?user=ann", "/audit-log", "/user?id=ann"):
                text = text_of(await browser.page(path))
                assert "has 1.00 of the 1,234.56 credits required" in text, path


async def test_holds_are_listed_as_of_now(database: Database, credit_config: CreditConfig) -> None:
    """A hold that has ended is no longer active, though nobody has written that yet."""
    now = [NOW]
    async with CreditLedger(database, credit_config, clock=lambda: now[0]) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=100)
        short = await ledger.place_hold("ann", "translate", amount=5, ttl=60)
        long = await ledger.place_hold("ann", "translate", amount=6, ttl=6000)
        captured = await ledger.place_hold("ann", "translate", amount=7, ttl=6000)
        await ledger.capture_hold(captured.hold_id, amount=4)
        now[0] += timedelta(seconds=90)
        async with opened(ledger) as browser:

            async def holds(**query: str) -> set[str]:
                return copied(await browser.page("/holds", **query)) - {"ann"}

            assert await holds() == {short.hold_id, long.hold_id, captured.hold_id}
            assert await holds(status="active") == {long.hold_id}
            assert await holds(status="expired") == {short.hold_id}
            assert await holds(status="captured") == {captured.hold_id}
            assert await holds(action="none") == set()
            page = text_of(await browser.page("/hold", id=captured.hold_id))
            assert "Captured 4 of 7" in page
            assert "captured" in page
            assert "expired" in text_of(await browser.page("/hold", id=short.hold_id))


# Maintenance


async def test_archives_and_verifications_show_their_last_runs(
    ledger: CreditLedger, database: Database, replica_set_uri: str
) -> None:
    """After each command; before it, the pages say which command to run."""
    await fill(ledger, "ann")
    async with opened(ledger) as browser:
        assert "Nothing was archived yet" in text_of(await browser.page("/archives"))
        assert "No result was kept yet" in text_of(await browser.page("/verification"))
        await archive(database, older_than=datetime.now(timezone.utc), full_speed=True)
        assert (await run("verify", *where(replica_set_uri, database)))[0] == 0
        text = text_of(await browser.page("/archives"))
        assert "done" in text
        assert "collection" in text
        text = text_of(await browser.page("/verification"))
        assert "The books were right" in text
        await database["users"].update_one({"_id": "ann"}, {"$inc": {"credits": 5}})
        assert (await run("verify", *where(replica_set_uri, database)))[0] == 1
        text = text_of(await browser.page("/verification"))
        assert "1 findings of 1 users" in text
        assert "balance-differs" in text
        assert "ann" not in text.replace("balance", "")


async def test_backups_are_shown_with_their_last_runs(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """The newest first, each with what it holds; incremental ones still follow."""
    await fill(ledger, "ann")
    async with opened(ledger) as browser:
        assert "No backup was noted yet" in text_of(await browser.page("/archives"))
        full = await make_backup(database, tmp_path)
        await ledger.grant("ann", 5, action="gift")
        later = await make_backup(database, tmp_path, incremental=True)
        page = await browser.page("/archives")
        found = [name for name in re.findall(r'data-copy="([^"]*)"', page) if name[0] == "2"]
        assert found == [later.name, full.name]
        assert f"{full.documents:,} {full.bytes:,} {tmp_path}" in text_of(page)
        backups = database["ledger_backups"]
        await backups.update_many({}, {"$set": {"runs": [7, {"name": 5, "bytes": "<b>"}]}})
        assert "None" in text_of(await browser.page("/archives"))
        await backups.update_many({}, {"$set": {"runs": "none"}})
        assert "No backup was noted yet" in text_of(await browser.page("/archives"))


# Prices


async def test_the_calculator_gives_what_a_charge_would_cost(ledger: CreditLedger) -> None:
    """By the same code."""
    async with opened(ledger) as browser:

        async def cost(**query: str) -> str:
            page = await browser.page("/settings", **query)
            return text_of(re.findall(r"<output>(.*?)</output>", page, re.DOTALL)[0])

        assert (await cost(action="generate-post")).startswith("10 credits")
        assert (await cost(action="generate-post", tier="enterprise")).startswith("5 credits")
        priced = {"action": "ai-completion", "tier": "premium", "v.token": "5000"}
        assert (await cost(**priced)).startswith("12 credits")
        assert "Give a number for token" in await cost(action="ai-completion")
        assert "needs the tier 'premium'" in await cost(action="generate-image")
        part = await browser.client.get(
            "/settings?action=translate", headers={"hx-request": "true"}
        )
        assert "<main" not in part.text


async def test_without_prices_the_page_says_where_they_come_from(database: Database) -> None:
    """A ledger without prices, as the command has it without --config."""
    async with CreditLedger(database, CreditConfig(costs={})) as ledger, opened(ledger) as browser:
        assert "--config" in text_of(await browser.page("/settings"))
