"""The lock files pin what the make targets and CI install, and follow pyproject.toml."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED_EXTRAS = ("demo", "dev", "bench")


def requirements_of(extra: str) -> list[Requirement]:
    """Return what an extra requires, including its extras and the package's dependencies."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                found += requirements_of(other)
        else:
            found.append(requirement)
    return found


def locked_versions(extra: str) -> dict[str, list[str]]:
    """Return each package's versions in a lock file: several if Python versions differ."""
    text = (ROOT / "requirements" / f"{extra}.txt").read_text()
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"(?m)^([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", text):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


@pytest.mark.parametrize("extra", LOCKED_EXTRAS)
def test_each_requirement_is_locked_at_versions_that_it_allows(extra: str) -> None:
    """Fails if pyproject.toml has changed and `make lock` has not run since."""
    locked = locked_versions(extra)
    for requirement in requirements_of(extra):
        versions = locked.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement} is missing in requirements/{extra}.txt: run make lock"
        assert all(map(requirement.specifier.contains, versions)), f"{requirement}: run make lock"


@pytest.mark.parametrize("extra", LOCKED_EXTRAS)
def test_each_locked_package_has_hashes_and_no_file_names_a_registry(extra: str) -> None:
    """pip refuses a file whose hash differs, wherever it was found."""
    text = (ROOT / "requirements" / f"{extra}.txt").read_text()
    packages = re.split(r"(?m)^(?=[\w.-]+(?:\[|==))", text)[1:]
    assert packages
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in text


def test_the_lock_files_agree_on_each_version() -> None:
    """All three go into one environment, which holds one version of each package."""
    tests = locked_versions("dev")
    for extra in ("demo", "bench"):
        for name, versions in locked_versions(extra).items():
            assert tests.get(name, versions) == versions, name
