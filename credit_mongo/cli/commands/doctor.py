"""``credit-mongo doctor``: everything that one would check first, with a remedy a line."""

from __future__ import annotations

import time
from typing import Annotated, Any
from uuid import uuid4

import typer
from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, load_config, settings_in
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE, FOUND
from credit_mongo.cli.output import AsJson, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.config import CreditConfig
from credit_mongo.errors import ConfigurationError
from credit_mongo.ledger import CreditLedger
from credit_mongo.maintenance.doctor.examination import examine
from credit_mongo.maintenance.doctor.findings import Finding, Patient, good
from credit_mongo.storage.database import LedgerDatabase

_ACTION = "credit-mongo-doctor"
_CREDITS, _COST = 10, 3
_COLUMNS = ("check", "state", "seen")

ReadOnly = Annotated[
    bool, typer.Option("--read-only", help="Leave out the test charge, which is rolled back.")
]


@app.command("doctor", rich_help_panel="Maintenance")
def doctor(
    *,
    read_only: ReadOnly = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Check everything that one would check first, and say what to do.

    It checks: server, replica set, version, write concern, clocks, dates in the future, settings,
    indexes, validators, TTL, disk, connections, roles. Last, it charges a user who doesn't exist
    before or afterwards: the transaction is rolled back. It writes nothing. Exit code 1: something
    is wrong. What the role may not see is "unknown", and what works but needs a look is "doubtful".
    """
    where = Connecting.to(uri, database, timeout)
    given = None if config is None else load_config(config)

    async def work(found: Database) -> list[Finding]:
        patient = Patient(LedgerDatabase.of(found), given or CreditConfig(costs={}))
        return await examine(
            patient,
            timeout,
            first=[("configuration", _Configuring(found, given).check)],
            last=[] if read_only else [("test charge", _Charging(found).check)],
        )

    findings = where.run_anyway(work)
    is_well = not any(each.state == "wrong" for each in findings)
    if as_json:
        facts: dict[str, Any] = {"database": where.database, "is_well": is_well}
        show_facts({**facts, "checks": [each.to_dict() for each in findings]})
    else:
        _show(findings)
    return DONE if is_well else FOUND


class _Configuring:
    """Lets the other checks look at the ledger that --config or the database names."""

    def __init__(self, database: Database, given: CreditConfig | None) -> None:
        self._database = database
        self._given = given

    async def check(self, patient: Patient) -> list[Finding]:
        """The database says which ledger it has, if --config doesn't."""
        config, findings = self._given, []
        if config is None:
            config = CreditConfig(costs={})
            try:
                config = await settings_in(self._database, reads_users=True)
            except ConfigurationError as error:
                findings = [Finding("configuration", "wrong", str(error), "give --config")]
        patient.config = config
        patient.database = LedgerDatabase.of(self._database, config.collections, config.users)
        return findings


def _show(findings: list[Finding]) -> None:
    show_rows(_COLUMNS, [(each.check, each.state, each.seen) for each in findings])
    remedies = [each for each in findings if each.remedy]
    if remedies:
        show("")
    for each in remedies:
        show(f"{each.check}: {each.remedy}.")


class _Charging:
    """A charge in a transaction that is aborted."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check(self, patient: Patient) -> list[Finding]:
        """A user is created and charged, and everything is rolled back."""
        if not patient.has_transactions:
            return [Finding("test charge", "unknown", "a single server has no transactions")]
        users = patient.config.users
        user_id = {
            "objectId": lambda: str(ObjectId()),
            "uuid": lambda: str(uuid4()),
            "string": lambda: f"{_ACTION}-{uuid4().hex}",
        }["string" if users is None else users.id_type]()
        ledger = CreditLedger(self._database, patient.config)
        began = time.monotonic()
        try:
            async with self._database.client.start_session() as session:
                await session.start_transaction()
                try:
                    balance = await self._charge(ledger, user_id, session)
                finally:
                    await session.abort_transaction()
        finally:
            await ledger.close()
        milliseconds = 1000 * (time.monotonic() - began)
        if balance != _CREDITS - _COST:
            seen = f"{_CREDITS} units less {_COST} came to {balance}"
            return [Finding("test charge", "wrong", seen, "report this: it is a bug")]
        return [good("test charge", f"charged and rolled back in {milliseconds:.0f} ms")]

    async def _charge(self, ledger: CreditLedger, user_id: str, session: AsyncClientSession) -> int:
        await ledger.create_user(user_id, credits=_CREDITS, session=session)
        charged = await ledger.charge(user_id, _ACTION, amount=_COST, session=session)
        return charged.balance_after
