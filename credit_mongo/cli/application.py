"""The application. It finds the commands, runs one, and turns its errors into exit codes."""

from __future__ import annotations

import functools
import inspect
import io
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer.main import get_command

from credit_mongo.cli import commands
from credit_mongo.cli.failures import DONE, EXPECTED, INTERRUPTED, NOT_DONE, explain
from credit_mongo.printing import printable

__all__ = ["app", "run"]

# The panels of the overview, in order. A command without one belongs to the last.
_PANELS: Final = ("Accounts", "Records", "Maintenance")

app: Final[typer.Typer] = typer.Typer(
    name="credit-mongo", add_completion=False, pretty_exceptions_enable=False
)


def _show_version(value: bool) -> None:
    if value:
        print(f"credit-mongo {version('credit-mongo')}")
        raise typer.Exit


@app.callback()
def credit_mongo(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Keep the books of a credit ledger in MongoDB.

    Exit codes: 0 done; 1 something is wrong with the data; 2 the command failed;
    130 Ctrl-C or SIGTERM.
    """


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Don't end with a traceback if the terminal's character set lacks a character.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    program = _program()
    try:
        code = program.main(list(arguments), prog_name="credit-mongo", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        return _end_unread()
    except EXPECTED as error:
        print(f"error: {printable(explain(error, _names_of(program, arguments)))}", file=sys.stderr)
        return NOT_DONE
    except SystemExit as ended:
        # Typer exits with code 1 on a broken pipe, which would mean that the data is wrong.
        if isinstance(ended.__context__, BrokenPipeError):
            return _end_unread()
        raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else DONE


@functools.cache
def _program() -> Any:
    """Find the commands and read their parameters. This takes as long as most commands do."""
    for module in pkgutil.iter_modules(commands.__path__):
        import_module(f"{commands.__name__}.{module.name}")
    _arrange()
    return get_command(app)


def _names_of(program: Any, arguments: Sequence[str]) -> dict[str, str]:
    """How the called command's parameters are typed, by their Python names: {"user": "USER"}."""
    called = program
    for each in arguments:
        # A group, such as migrate, has commands of its own.
        called = getattr(called, "commands", {}).get(each, called)
    called = getattr(called, "default_command", called)
    return {
        each.name: each.opts[0] if each.param_type_name == "option" else str(each.metavar)
        for each in getattr(called, "params", ())
    }


def _arrange() -> None:
    groups = [each.typer_instance for each in app.registered_groups if each.typer_instance]
    for group in (app, *groups):
        for command in group.registered_commands:
            # Join each paragraph's lines, so that Typer fits them to the terminal's width.
            command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(command.callback) or "")
    for command in app.registered_commands:
        if command.rich_help_panel not in _PANELS:
            command.rich_help_panel = _PANELS[-1]
    app.registered_commands.sort(key=lambda each: _PANELS.index(str(each.rich_help_panel)))


def _end_unread() -> int:
    """End after the output's reader has gone. Without this, Python's last flush would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return NOT_DONE
