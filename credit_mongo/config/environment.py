"""Where the database is, from the environment."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings"]


class Settings(BaseSettings):
    """Where the database is: MONGODB_URI and MONGODB_DATABASE of the environment."""

    # By these names alone: URI and DATABASE of an environment are somebody else's.
    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True
    )

    uri: str = Field(
        default="mongodb://127.0.0.1:27017/?replicaSet=rs0",
        repr=False,
        validation_alias="MONGODB_URI",
    )
    database: str = Field(default="credits", validation_alias="MONGODB_DATABASE")
