"""The adapters of other drivers have what the ledger's database calls, and no more."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest

from credit_mongo.drivers.synchronous import AdaptedCollection, AdaptedCursor, AdaptedDatabase
from credit_mongo.storage import database


def _calls_of(kind: type[Any]) -> set[str]:
    """The names that a class of the ledger's uses of the driver's object behind it."""
    return {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(kind)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "_driver"
    }


def _names_of(kind: type[Any]) -> set[str]:
    """What an adapter offers."""
    own = {name for name in vars(kind) if not name.startswith("_")}
    return own | set(kind._awaited) | set(kind._give_cursors)


@pytest.mark.parametrize(
    ("ours", "adapter", "others"),
    [
        # These two are asked for when the driver's database is handed over.
        (database.LedgerDatabase, AdaptedDatabase, {"codec_options", "with_options"}),
        (database.Collection, AdaptedCollection, set[str]()),
        (database.Cursor, AdaptedCursor, set[str]()),
    ],
)
def test_an_adapter_has_what_is_called_and_no_more(
    ours: type[Any], adapter: type[Any], others: set[str]
) -> None:
    """A method that nobody calls would be tested by nobody."""
    called = {name for name in _calls_of(ours) if not name.startswith("__")}
    assert _names_of(adapter) == called | others
