"""What the parts of a configuration have in common: frozen, and checked when they are built."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from credit_mongo.errors import ConfigurationError

__all__ = ["Part", "wrong"]


def wrong(reason: str, *field: str) -> PydanticCustomError:
    """What is wrong; ``field`` is the way from where it was noticed to the key that is wrong."""
    # As context, because braces in a reason (a formula's, say) are not placeholders.
    return PydanticCustomError("credit_mongo", "{reason}", {"reason": reason, "field": field})


if TYPE_CHECKING:
    _Checked = BaseModel
else:

    class _RaisesConfigurationError(type(BaseModel)):
        # Not in __init__: pydantic calls that for the parts of a whole, too.
        def __call__(cls, *arguments, **values):
            try:
                return super().__call__(*arguments, **values)
            except ValidationError as error:
                raise _as_configuration_error(error) from None

    class _Checked(BaseModel, metaclass=_RaisesConfigurationError):
        pass


class Part(_Checked):
    """A part, or the whole. What is wrong with it is a ConfigurationError that names the key."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )


def _as_configuration_error(error: ValidationError) -> ConfigurationError:
    errors = error.errors(include_url=False, include_input=False)
    # A misspelt key also makes the right one missing: name the cause.
    first = min(errors, key=lambda each: each["type"] != "extra_forbidden")
    inner = first.get("ctx", {}).get("field", ()) if first["type"] == "credit_mongo" else ()
    path = ".".join(str(part) for part in (*first["loc"], *inner) if part != "[key]")
    if first["type"] == "extra_forbidden":
        return ConfigurationError(path, "there is no such key")
    return ConfigurationError(path, first["msg"])
