"""The base of all parts of a configuration: frozen, and checked when built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from credit_mongo.errors import ConfigurationError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Part", "as_configuration_error", "invalid"]

_MAX_SHOWN: Final = 10


def invalid(reason: str, *field: str) -> PydanticCustomError:
    """Return the error for a check to raise.

    ``reason`` is the text after the key's name. ``field`` leads from the checked part to the wrong
    key.
    """
    # Passed as context, because braces in a reason (such as a formula's) are not placeholders.
    return PydanticCustomError("credit_mongo", "{reason}", {"reason": reason, "field": field})


if TYPE_CHECKING:
    _Checked = BaseModel
else:

    class _RaisesConfigurationError(type(BaseModel)):
        # Not in __init__, which pydantic also calls for nested parts.
        def __call__(cls, *arguments, **values):
            try:
                return super().__call__(*arguments, **values)
            except ValidationError as error:
                raise as_configuration_error(error) from None

    class _Checked(BaseModel, metaclass=_RaisesConfigurationError):
        pass


class Part(_Checked):
    """A part of a configuration, or all of it.

    Building one raises ConfigurationError with the name of the wrong key.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy in which the values of ``update`` replace others, checked as a whole.

        Raises ConfigurationError with the name of the wrong key.
        """
        if not update:
            return super().model_copy(deep=deep)
        # Pydantic's own copy checks nothing, and keeps what was computed from the replaced values.
        return type(self)(**{**self.model_dump(), **update})

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show the values that differ from the defaults, as people write them, long ones cut."""
        written, fields = self.model_dump(), type(self).model_fields
        for name, info in fields.items():
            value = getattr(self, name)
            if info.is_required() or value != info.get_default(call_default_factory=True):
                yield name, value if isinstance(value, Part) else _shortened(written[name])


class _Shortened(dict[Any, Any]):
    """A mapping whose repr shows only the first items."""

    def __repr__(self) -> str:
        items = [f"{key!r}: {value!r}" for key, value in self.items()]
        if len(items) > _MAX_SHOWN:
            items[_MAX_SHOWN:] = [f"… {len(items) - _MAX_SHOWN} more"]
        return f"{{{', '.join(items)}}}"


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return _Shortened({key: _shortened(item) for key, item in value.items()})
    return value


def as_configuration_error(error: ValidationError) -> ConfigurationError:
    """The library's error for pydantic's. It names the wrong key, and quotes no value."""
    errors = error.errors(include_url=False, include_input=False)
    # A misspelt key also causes an error for the missing right one: report the misspelt key.
    first = min(errors, key=lambda each: each["type"] != "extra_forbidden")
    inner = first.get("ctx", {}).get("field", ()) if first["type"] == "credit_mongo" else ()
    path = ".".join(str(part) for part in (*first["loc"], *inner) if part != "[key]")
    if first["type"] == "extra_forbidden":
        return ConfigurationError(path, "is not a known key: check its spelling")
    return ConfigurationError(path, first["msg"])
