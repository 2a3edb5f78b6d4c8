"""The error when an extra of the package is needed but not installed."""

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
    """The import that needs the extra fails, and names the command that installs it."""
    program = f"import sys; sys.modules[{lacks!r}] = None; import credit_mongo.{module}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    told = f"ModuleNotFoundError: {lacks} is missing: pip install 'credit-mongo[{extra}]'"
    assert done.stderr.splitlines()[-1] == told


def test_a_missing_module_of_the_package_is_not_taken_for_an_extra() -> None:
    """A missing module of the package itself is a bug, and the error shows where."""
    from credit_mongo.extras import missing

    error = ModuleNotFoundError("No module named 'credit_mongo.x'", name="credit_mongo.x")
    assert missing(error, "cli") is error
