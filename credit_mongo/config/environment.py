"""Where the database is, from the environment."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings"]


class Settings(BaseSettings):
    """The database's address, from the environment variables MONGODB_URI and MONGODB_DATABASE."""

    # Only these two names: an environment's URI and DATABASE may belong to other software.
    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True
    )

    uri: str = Field(
        default="mongodb://127.0.0.1:27017/?replicaSet=rs0",
        repr=False,
        validation_alias="MONGODB_URI",
    )
    database: str = Field(default="credits", validation_alias="MONGODB_DATABASE")
