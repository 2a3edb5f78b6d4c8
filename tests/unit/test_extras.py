"""What is told where an extra of the installation is needed and is not there."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "lacks", "extra"),
    [
        ("integrations.fastapi", "fastapi", "fastapi"),
        ("testing.containers", "docker", "containers"),
        ("testing.containers", "testcontainers", "containers"),
        ("maintenance.export.exporting", "orjson", "cli"),
    ],
)
def test_an_extra_that_is_missing_is_named(module: str, lacks: str, extra: str) -> None:
    """By the import that needs it, with the command that brings it."""
    program = f"import sys; sys.modules[{lacks!r}] = None; import credit_mongo.{module}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    told = f"ModuleNotFoundError: {lacks} is missing: pip install 'credit-mongo[{extra}]'"
    assert done.stderr.splitlines()[-1] == told


def test_a_module_of_our_own_that_is_missing_is_no_extra() -> None:
    """That would be a bug, and shows where."""
    from credit_mongo.extras import missing

    error = ModuleNotFoundError("No module named 'credit_mongo.x'", name="credit_mongo.x")
    assert missing(error, "cli") is error
