"""The mapping of the ledger's fields to the application's own user documents."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, AliasChoices, Field, model_validator

from credit_mongo.config.parts import Part, invalid

__all__ = ["UserMapping"]

_FIELD_NAME: Final = re.compile(r"[^$.\x00-\x1f\x7f]{1,120}")


def _field_name(name: str) -> str:
    # No operators and no paths: the fields are at the top level of the document.
    if not _FIELD_NAME.fullmatch(name):
        raise invalid(
            "must have 1 to 120 characters, without $, . or control characters: it names a field "
            "of the document itself, and fields of embedded documents are not supported"
        )
    return name


_FieldName = Annotated[str, AfterValidator(_field_name)]


class UserMapping(Part):
    """The names of the fields that the ledger uses in the application's own user documents.

    The ledger writes only these fields, and never replaces a document. If a document already has
    ``created_at``, the ledger keeps it.

    ``id_type`` is the type of ``_id``. In the API, a user's id is always a string: an ObjectId as
    24 hexadecimal digits, a UUID in its canonical form, both in lower case.

    Raises ConfigurationError if two fields have the same name, or if a name is ``_id``, has more
    than 120 characters, or contains ``$``, ``.`` or a control character.
    """

    id_type: Literal["string", "objectId", "uuid"] = Field(
        default="string", validation_alias=AliasChoices("id_type", "idType")
    )
    credits: _FieldName = "credits"
    seq: _FieldName = "seq"
    membership_tier: _FieldName = Field(
        default="membershipTier",
        validation_alias=AliasChoices("membership_tier", "membershipTier"),
    )
    membership_expires_at: _FieldName = Field(
        default="membershipExpiresAt",
        validation_alias=AliasChoices("membership_expires_at", "membershipExpiresAt"),
    )
    created_at: _FieldName = Field(
        default="createdAt", validation_alias=AliasChoices("created_at", "createdAt")
    )
    updated_at: _FieldName = Field(
        default="updatedAt", validation_alias=AliasChoices("updated_at", "updatedAt")
    )

    extras: _FieldName = "creditExtras"
    """Lots, holds and overdraft, of users who have any."""

    @model_validator(mode="after")
    def _names_are_distinct(self) -> UserMapping:
        seen: set[str] = set()
        for field, name in self.model_dump(exclude={"id_type"}).items():
            if name == "_id":
                raise invalid("cannot be '_id', which is the user's id", field)
            if name in seen:
                raise invalid(f"{name!r} is already the name of another field", field)
            seen.add(name)
        return self
