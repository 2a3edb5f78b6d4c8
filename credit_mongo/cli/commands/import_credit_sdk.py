"""``credit-mongo import credit-sdk``: fill a ledger from a deployment of the Credit SDK."""

from __future__ import annotations

import gc
from datetime import tzinfo
from typing import Annotated, Any, Final, get_args

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE, FOUND
from credit_mongo.cli.ledgers import moment_of, plain, shown
from credit_mongo.cli.output import AsJson, progress, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.config import CreditConfig
from credit_mongo.maintenance.imports.importing import import_credit_sdk
from credit_mongo.maintenance.imports.report import ImportReport, plain_number
from credit_mongo.maintenance.imports.rules import (
    AmountsIn,
    Balances,
    Fractions,
    ImportRules,
    Negative,
    OrphanedAudits,
)
from credit_mongo.maintenance.imports.sources import source_of
from credit_mongo.maintenance.imports.tables import Names
from credit_mongo.maintenance.usage.periods import zone_of
from credit_mongo.printing import moment_to_seconds
from credit_mongo.storage.database import LedgerDatabase

_MOST_SHOWN: Final = 20
_TROUBLES: Final = ("user", "table", "row", "trouble")

imports: Final[typer.Typer] = typer.Typer(
    name="import", help="Fill the ledger from another system."
)
app.add_typer(imports, rich_help_panel="Maintenance")


@imports.callback()
def import_() -> None:
    """Fill the ledger from another system."""


@imports.command("credit-sdk")
def credit_sdk(
    *,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URL",
            envvar="CREDIT_SDK_URL",
            show_envvar=False,
            help="The deployment's database, as its Prisma schema has it. Better in the "
            "environment, as CREDIT_SDK_URL: other users of the machine see options.",
        ),
    ],
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="TABLE[.FIELD]=NAME",
            show_default=False,
            help="The name of a table or column, such as users=Customer or users.credits=points.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="audit_logs|idempotency_records",
            show_default=False,
            help="A table that the deployment doesn't have.",
        ),
    ] = None,
    amounts_in: Annotated[
        str, typer.Option(metavar="credits|units", help="What the deployment's numbers count.")
    ] = "credits",
    fractions: Annotated[
        str,
        typer.Option(
            metavar="refuse|round", help="Numbers with more decimal places than a credit has."
        ),
    ] = "refuse",
    balances: Annotated[
        str,
        typer.Option(
            metavar="refuse|adjust|recompute",
            help="Balances that don't follow from each other: believe the balances and add rows "
            "that bridge the gaps, or believe the amounts.",
        ),
    ] = "refuse",
    negative: Annotated[
        str,
        typer.Option(
            metavar="refuse|zero|debt",
            help="Balances below zero: forgive what is left of them, or keep it as a debt.",
        ),
    ] = "refuse",
    orphaned_audits: Annotated[
        str,
        typer.Option(
            metavar="refuse|leave", help="Audit rows of successes whose transaction is gone."
        ),
    ] = "refuse",
    time_zone: Annotated[
        str, typer.Option(metavar="ZONE", help="Of dates without a zone. Prisma stores UTC.")
    ] = "UTC",
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            show_default=False,
            help="Only users with rows since then. Default: since the last import.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Look at all users again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing. Say what would be done.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Import users, transactions, audit logs and idempotency keys from a Credit SDK deployment.

    It can be killed at any point and run again. Run it while the SDK is at work, as often as you
    like: it imports what is new. Run it once more when the SDK has stopped. At the end it compares
    both sides. It writes nothing to the deployment.

    A user with something odd, such as a balance that doesn't follow from the transactions, is left
    out and named, unless an option settles it. Exit code 1: both sides differ, or something was
    left out.
    """
    at = Connecting.to(uri, database, timeout)
    wanted = Names.of(_mapping(names or []), without or [])
    zone = zone_of(time_zone)
    settings = settings_of(at, config)
    rules = _rules(
        settings,
        zone,
        tiers=config is not None,
        amounts_in=amounts_in,
        fractions=fractions,
        balances=balances,
        negative=negative,
        orphaned_audits=orphaned_audits,
    )
    moment = moment_of("since", since)
    deployment = source_of(source, wanted, zone)

    async def work(found: Database) -> ImportReport:
        # Millions of rows come and go, none of them in a cycle. Collecting less often saves time.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        ledger = LedgerDatabase.of(found, settings.collections, settings.users)
        with progress("Importing", "transactions") as advance:
            return await import_credit_sdk(
                deployment,
                ledger,
                rules,
                since=moment,
                everything=everything,
                dry_run=dry_run,
                on_progress=advance,
            )

    report = at.run_on_ledger(settings, work)
    if as_json:
        show_facts({"database": at.database, **plain(report.to_dict())})
    else:
        _show(report, at.database, settings)
    return DONE if report.agrees else FOUND


def _mapping(pairs: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        path, is_there, name = pair.partition("=")
        if not is_there or path in found:
            raise typer.BadParameter(f"--map must be like TABLE=NAME, once each, not {pair[:40]!r}")
        found[path] = name
    return found


def _rules(settings: CreditConfig, zone: tzinfo, *, tiers: bool, **chosen: str) -> ImportRules:
    for name, allowed in (
        ("amounts_in", get_args(AmountsIn)),
        ("fractions", get_args(Fractions)),
        ("balances", get_args(Balances)),
        ("negative", get_args(Negative)),
        ("orphaned_audits", get_args(OrphanedAudits)),
    ):
        if chosen[name] not in allowed:
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(
                f"{option} must be {' or '.join(allowed)}, not {chosen[name][:40]!r}"
            )
    configured = frozenset(settings.membership.tiers if settings.membership else ())
    options: dict[str, Any] = dict(chosen)
    return ImportRules(
        decimal_places=settings.decimal_places,
        time_zone=zone,
        tiers=configured if tiers and configured else None,
        audits=settings.audit.enabled,
        **options,
    )


def _show(report: ImportReport, database: str, settings: CreditConfig) -> None:
    show_rows(_TROUBLES, [tuple(each) for each in report.troubles[:_MOST_SHOWN]])
    if report.troubles_total > _MOST_SHOWN:
        show(f"and {report.troubles_total - _MOST_SHOWN:,} more: --json has the first 1000")
    known = {trouble.user_id for trouble in report.troubles}
    others = [each for each in report.differing if each[0] not in known]
    for user_id, how in others[:_MOST_SHOWN]:
        show(f"differs: {user_id} {how}")
    for reason, count in sorted(report.settled.items()):
        show(f"settled: {count:,} × {reason}")  # noqa: RUF001
    if report.openings:
        units = shown(report.opening_units, settings)
        show(f"opened: {report.openings:,} users had {units} before their first transaction")
    if report.orphaned_audits:
        show(f"left: {report.orphaned_audits:,} audit rows of transactions that are gone")
    if report.keys_without_transaction:
        show(f"left: {report.keys_without_transaction:,} keys of transactions that are not here")
    if report.left:
        show(f"left: {report.left:,} users, as they are")
    for each in report.compared:
        sign = "=" if each.agrees else "≠"
        sides = f"{plain_number(each.source)} {sign} {plain_number(each.ledger)}"
        show(f"{each.what}: {sides}")
    since = "" if report.since is None else f" of changes since {moment_to_seconds(report.since)}"
    would = "would be " if report.dry_run else ""
    show(
        f"{database}: {report.users:,} users, {report.transactions:,} transactions, "
        f"{report.audit_logs:,} audit logs and {report.idempotency_records:,} keys{since} "
        f"{would}imported from {report.source}"
        f"{' (dry run: nothing was written)' if report.dry_run else ''}"
    )
