"""A database that lacks migrations of the stored form: what says so, and what applies them."""

from __future__ import annotations

import json
import logging

import pytest

from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.storage.forms import FORM, STORED_FORMS, missing_forms
from tests.integration.commands import run, where
from tests.integration.promises import Database

SETTINGS = "ledger_settings"
CONFIG = CreditConfig(costs={"post": {"default": 10}})
NEWEST = STORED_FORMS[-1].name


async def set_up_in_an_older_form(database: Database) -> None:
    """Store settings as the version before this one did."""
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
    older = {"$set": {"version": FORM - 1, "lowestWriter": FORM - 1}}
    await database[SETTINGS].update_one({"_id": "transactions"}, older)


def test_forms_are_numbered_and_named_once() -> None:
    """A number is found in a database for ever, and a name in its documentation."""
    assert [form.number for form in STORED_FORMS] == list(range(1, FORM + 1))
    assert len({form.name for form in STORED_FORMS}) == len(STORED_FORMS)


def test_a_database_lacks_what_is_newer_than_its_number() -> None:
    """Without settings, all are missing. A newer version's database lacks none."""
    assert missing_forms(None) == missing_forms({}) == STORED_FORMS
    assert missing_forms({"version": FORM - 1}) == STORED_FORMS[-1:]
    assert missing_forms({"version": FORM + 1}) == ()
    assert missing_forms({"version": True}) == missing_forms({"version": "2"}) == STORED_FORMS


async def test_opening_a_ledger_names_what_its_database_lacks(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It works and warns, until ensure_indexes has applied it."""
    caplog.set_level(logging.INFO, "credit_mongo")
    await set_up_in_an_older_form(database)
    caplog.clear()
    async with CreditLedger(database, CONFIG) as ledger:
        [told] = [each for each in caplog.records if "stored form" in each.message]
        assert told.levelno == logging.WARNING
        assert f"{NEWEST}. Run credit-mongo init" in told.getMessage()
        await ledger.create_user("ann", credits=5)
        await ledger.ensure_indexes()
    caplog.clear()
    async with CreditLedger(database, CONFIG):
        assert not [each for each in caplog.records if "stored form" in each.message]


async def test_status_names_what_a_database_lacks(database: Database, replica_set_uri: str) -> None:
    """``init`` applies it."""
    here = where(replica_set_uri, database)
    await set_up_in_an_older_form(database)
    code, output, errors = await run("status", *here)
    assert (code, errors) == (1, "")
    assert f"stored form\tlacks the migrations {NEWEST}\n" in output
    assert (await run("init", *here))[0] == 0
    code, output, errors = await run("status", *here, "--json")
    assert (code, errors, json.loads(output)["missing_migrations"]) == (0, "", [])
