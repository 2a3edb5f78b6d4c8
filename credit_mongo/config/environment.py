"""Where the database is, from the environment."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from credit_mongo.config.parts import as_configuration_error
from credit_mongo.config.pools import LARGEST_POOL, PoolProfile

__all__ = ["Settings"]


class Settings(BaseSettings):
    """The database's address and the client's connections, from the environment.

    Raises ConfigurationError with the name of the variable whose value is wrong.
    """

    # Only these names: an environment's URI and DATABASE may belong to other software.
    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True
    )

    uri: str = Field(
        default="mongodb://127.0.0.1:27017/?replicaSet=rs0",
        repr=False,
        validation_alias="MONGODB_URI",
    )
    database: str = Field(default="credits", validation_alias="MONGODB_DATABASE")
    pool_profile: PoolProfile | None = Field(default=None, validation_alias="MONGODB_POOL_PROFILE")
    min_pool_size: int | None = Field(
        default=None, ge=0, le=LARGEST_POOL, validation_alias="MONGODB_MIN_POOL_SIZE"
    )
    max_pool_size: int | None = Field(
        default=None, ge=1, le=LARGEST_POOL, validation_alias="MONGODB_MAX_POOL_SIZE"
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise as_configuration_error(error) from None
