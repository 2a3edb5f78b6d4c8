"""How the application's own user documents hold the ledger's facts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, StringConstraints, model_validator

from credit_mongo.config.parts import Part, wrong

__all__ = ["UserMapping"]

_FieldName = Annotated[
    # Neither an operator nor a path: the ledger's fields stand on the document itself.
    str,
    StringConstraints(pattern=r"^[^$.\x00-\x1f\x7f]+$", max_length=120),
]


class UserMapping(Part):
    """The fields of the application's own user documents that the ledger reads and writes.

    It writes no others, and never replaces a document. ``id_type`` is what ``_id`` is; to the API a
    user's id is always a string: of an ObjectId its 24 hexadecimal digits, of a UUID its canonical
    text, both in lower case. ``created_at`` is left as it is where a document has one.
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

    @model_validator(mode="after")
    def _names_are_distinct(self) -> UserMapping:
        seen: set[str] = set()
        for field, name in self.model_dump(exclude={"id_type"}).items():
            if name == "_id":
                raise wrong("_id is the user's id", field)
            if name in seen:
                raise wrong(f"{name!r} is another field's name already", field)
            seen.add(name)
        return self
