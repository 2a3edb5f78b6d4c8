"""The fixtures of tests that anyio's plugin runs. pytest-asyncio in strict mode ignores them."""

from __future__ import annotations

import pytest

from pytest_credit_mongo.on_loops import EVERY

for _function in EVERY:
    _name = f"_{_function.__name__}_on_anyio"
    globals()[_name] = pytest.fixture(name=_name)(_function)
