"""The configuration's reference page names every field as the code has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin

import pytest
from annotated_types import Ge, Le
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from credit_mongo import (
    AuditConfig,
    CollectionNames,
    CreditConfig,
    IdempotencyConfig,
    MembershipConfig,
    RetryConfig,
    Settings,
    UserMapping,
)

PAGE = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text(encoding="utf-8")
MODELS: list[type[BaseModel]] = [
    CreditConfig,
    MembershipConfig,
    RetryConfig,
    IdempotencyConfig,
    AuditConfig,
    CollectionNames,
    UserMapping,
    Settings,
]


class Row(NamedTuple):
    """A row of a table on the page."""

    names: str
    type: str
    default: str
    limits: str
    meaning: str


def _rows(model: type[BaseModel]) -> list[Row]:
    section = PAGE.split(f"\n## {model.__name__}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines]


def _names(name: str, info: FieldInfo) -> str:
    alias = info.validation_alias
    if alias is None:
        return f"`{name}`"
    others = alias.choices[1:] if isinstance(alias, AliasChoices) else [alias]
    if isinstance(alias, AliasChoices):
        assert alias.choices[0] == name
    return f"`{name}` ({', '.join(f'`{other}`' for other in others)})"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        assert value == type(value)()
        return "all its defaults"
    return f"`{value}`"


def _limits(info: FieldInfo) -> str | None:
    """Return the limits that the field itself declares."""
    if get_origin(info.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(info.annotation))
    least = [each.ge for each in info.metadata if isinstance(each, Ge)]
    most = [each.le for each in info.metadata if isinstance(each, Le)]
    return f"{least[0]:,} to {most[0]:,}" if least else None


def _type(info: FieldInfo) -> str | None:
    """Return the page's name for a field's type."""
    if get_origin(info.annotation) is Literal:
        return "`str`"
    plain = isinstance(info.annotation, type) and info.annotation.__module__ == "builtins"
    return f"`{info.annotation.__name__}`" if plain and info.annotation else None


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_page_names_each_field_with_its_type_default_and_limits(
    model: type[BaseModel],
) -> None:
    """Fields stand in the order of the code, also under the names that JSON may use."""
    rows = _rows(model)
    fields = model.model_fields
    assert [row.names for row in rows] == [_names(*each) for each in fields.items()]
    assert [row.default for row in rows] == [_default(info) for info in fields.values()]
    for row, (name, info) in zip(rows, fields.items(), strict=True):
        assert row.meaning, name
        if (limits := _limits(info)) is not None:
            assert row.limits == limits, name
        if (kind := _type(info)) is not None:
            assert row.type.split(",")[0] == kind, name
        assert ("seconds" in name) == row.type.endswith(", seconds"), name
        assert name.endswith("_ms") == row.type.endswith(", milliseconds"), name


def test_the_page_has_a_table_for_each_part_of_the_configuration() -> None:
    """A new part of the configuration must have its table."""
    parts = {
        kind.__name__
        for info in CreditConfig.model_fields.values()
        for kind in (info.annotation, *get_args(info.annotation))
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }
    headings = re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)
    assert parts | {"CreditConfig", "Settings"} == set(headings) - {"Signatures"}
