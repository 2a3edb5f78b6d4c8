"""The fixtures of tests that pytest-asyncio runs: one set for each scope of an event loop."""

from __future__ import annotations

from types import FunctionType

import pytest_asyncio

from pytest_credit_mongo.on_loops import EVERY

for _scope in ("function", "class", "module", "package", "session"):
    for _function in EVERY:
        _name = f"_{_function.__name__}_on_asyncio_{_scope}"
        # A separate function for each scope, because pytest-asyncio stores the scope on it.
        _own = FunctionType(_function.__code__, _function.__globals__, _name)
        globals()[_name] = pytest_asyncio.fixture(name=_name, loop_scope=_scope)(_own)
