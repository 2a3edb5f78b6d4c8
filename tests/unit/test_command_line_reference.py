"""The reference page of the command line names every command and every option."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from typer.main import get_command

from credit_mongo.cli import commands
from credit_mongo.cli.application import app

PAGE = (Path(__file__).parents[2] / "docs/reference/command-line.md").read_text(encoding="utf-8")
OF_EVERY_COMMAND = {"--uri", "--database", "--config", "--timeout", "--json"}
NEED_NO_DATABASE = {"migrate create"}
# Migrations are the application's, whatever the ledger's configuration. Backups have it in them.
TAKE_NO_CONFIG = {"migrate down", "migrate resolve", "backup verify", "restore"}
OF_THOSE_THAT_WRITE = {"--idempotency-key", "--metadata", "--dry-run"}


def _options(command: Any) -> set[str]:
    return {each.opts[0] for each in command.params if each.param_type_name == "option"}


def _commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """Every command by what is typed, also those of a group."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        typed = f"{prefix}{name}"
        found |= _commands(command, f"{typed} ") if hasattr(command, "commands") else {}
        found |= {} if hasattr(command, "commands") else {typed: command}
    return found


def test_the_page_has_every_command_with_its_options() -> None:
    """A command or an option that is new is missed here, and one that is gone is found."""
    for module in pkgutil.iter_modules(commands.__path__):
        import_module(f"{commands.__name__}.{module.name}")
    root: Any = get_command(app)
    rows = re.findall(r"^\| `([a-z-]+(?: [a-z-]+)*)[^`]*` \|[^|]*\|([^|]*)\|$", PAGE, re.MULTILINE)
    told = {name: set(re.findall(r"--[\w-]+", options)) for name, options in rows}
    have = {}
    for name, command in _commands(root).items():
        own = _options(command) - OF_EVERY_COMMAND
        have[name] = own - OF_THOSE_THAT_WRITE if own >= OF_THOSE_THAT_WRITE else own
        of_every = set() if name in NEED_NO_DATABASE else OF_EVERY_COMMAND
        assert _options(command) >= of_every - ({"--config"} if name in TAKE_NO_CONFIG else set())
    assert told == have
