"""A command's configuration, from --config or from the settings stored in the database.

Most commands need no prices. They only need to know where the users are and how many decimal places
a credit has. The ledger's database stores that: see `credit_mongo.storage.settings`.
"""

from __future__ import annotations

import re
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated, Final

import typer
from pymongo.errors import OperationFailure

from credit_mongo.cli.connecting import Connecting, Database
from credit_mongo.config import CollectionNames, CreditConfig
from credit_mongo.config.json_text import MAX_JSON_LENGTH
from credit_mongo.errors import ConfigurationError, PriceRoundsToZeroWarning
from credit_mongo.printing import printable
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.server_errors import UNAUTHORIZED
from credit_mongo.storage.settings import LedgerSettings, stored_settings

__all__ = ["ConfigFile", "load_config", "settings_in", "settings_of"]

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE|MODULE:NAME",
        show_default=False,
        help="The ledger's CreditConfig: a JSON file, or package.module:name of a Python object. "
        "Only prices and tiers need it. Default: the settings stored in the database.",
    ),
]

_NAME: Final = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_PYTHON_OBJECT: Final = re.compile(f"({_NAME}):({_NAME})")


def settings_of(where: Connecting, config: str | None, *, reads_users: bool = True) -> CreditConfig:
    """The configuration that --config names. Default: the database's settings, without prices.

    ``reads_users``: whether the command would go wrong if the users were elsewhere.

    Raises ConfigurationError, OSError, and what ``Connecting.run`` raises. Without --config, it
    raises ConfigurationError if the database has several ledgers or can't tell where the users are.
    """
    if config is not None:
        return load_config(config)
    return where.run(lambda database: settings_in(database, reads_users=reads_users))


async def settings_in(database: Database, *, reads_users: bool) -> CreditConfig:
    """The configuration that the database keeps. Raises ConfigurationError as `settings_of`."""
    rows = await stored_settings(LedgerDatabase.of(database))
    if not rows:
        if reads_users:
            await _check_that_defaults_fit(database)
        return CreditConfig(costs={})
    if len(rows) > 1:
        names = ", ".join(repr(row["_id"]) for row in rows)
        raise ConfigurationError(
            "config",
            f"{database.name} has {len(rows)} ledgers, with transactions in {names}: "
            "choose one with --config",
        )
    settings = LedgerSettings.from_row(rows[0])
    settings.check_that_names_are_known()
    return CreditConfig(
        costs={},
        collections=settings.collections,
        users=settings.users,
        decimal_places=settings.decimal_places or 0,
    )


async def _check_that_defaults_fit(database: Database) -> None:
    """Raise ConfigurationError if there are transactions but no accounts at the default names.

    Then the users are elsewhere, and sound books would look as if all accounts were lost.
    """
    names = CollectionNames()
    try:
        if await database[names.transactions].find_one({}, {"_id": 1}) is None:
            return
        account = {"$or": [{"credits": {"$exists": True}}, {"seq": {"$exists": True}}]}
        if await database[names.users].find_one(account, {"_id": 1}) is not None:
            return
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        return  # the command itself says which privilege the role lacks
    raise ConfigurationError(
        "config",
        f"{database.name} has transactions but no accounts in {names.users!r}, and no stored "
        "settings say where they are: give --config with its collections and users. "
        "credit-mongo init --config stores them for all other commands",
    )


def load_config(config: str) -> CreditConfig:
    """Load the configuration that --config names: a JSON file, or package.module:name.

    Raises ConfigurationError and OSError.
    """
    match = _PYTHON_OBJECT.fullmatch(config)
    if match is not None and not Path(config).exists():
        return _import(*match.groups())
    return _read(Path(config))


def _read(path: Path) -> CreditConfig:
    try:
        with path.open("rb") as file:
            # With a limit, because a device may never end.
            text = file.read(MAX_JSON_LENGTH + 1)
    except ValueError:
        raise ConfigurationError("config", "is not a file name") from None
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", PriceRoundsToZeroWarning)
        try:
            config = CreditConfig.from_json(text)
        except ConfigurationError as error:
            reason = error.reason if error.field else f"{path} {error.reason}"
            raise ConfigurationError(f"config.{error.field}".rstrip("."), reason) from None
    for doubt in doubts:
        print(f"warning: config.{printable(str(doubt.message))}", file=sys.stderr)
    return config


def _import(module: str, name: str) -> CreditConfig:
    # As with ``python -m``, modules in the current directory are found.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: object = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        # The error's own text may contain the application's secrets, so name only its type.
        what = f" {error.name!r}" if isinstance(error, ImportError | AttributeError) else ""
        raise ConfigurationError(
            "config", f"{module}:{name} can't be imported: {type(error).__name__}{what}"
        ) from error
    if not isinstance(found, CreditConfig):
        kind = type(found).__name__
        raise ConfigurationError("config", f"{module}:{name} must be a CreditConfig, not {kind}")
    return found
