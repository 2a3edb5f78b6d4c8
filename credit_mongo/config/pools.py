"""How many connections a client keeps to each server: sizes, and names for the usual ones."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from credit_mongo.errors import ConfigurationError

__all__ = ["LARGEST_POOL", "POOL_PROFILES", "PoolProfile", "PoolSize", "check_pool"]

PoolProfile: TypeAlias = Literal["development", "production", "high-traffic"]
"""A name for the usual sizes: see ``POOL_PROFILES``."""

LARGEST_POOL: Final = 10_000
# PyMongo's own.
_DEFAULT_MOST: Final = 100


class PoolSize(NamedTuple):
    """Connections to each server of the replica set. None leaves a size to the driver."""

    least: int | None = None
    """How many are kept open, also while nobody uses them."""
    most: int | None = None
    """How many there are at most. Further calls wait for one."""


POOL_PROFILES: Final[Mapping[PoolProfile, PoolSize]] = MappingProxyType(
    {
        "development": PoolSize(5, 10),
        "production": PoolSize(10, 20),
        "high-traffic": PoolSize(20, 50),
    }
)
"""The sizes of each profile: how many connections stay open, and how many there are at most."""


def check_pool(
    profile: object, min_pool_size: object, max_pool_size: object, in_uri: PoolSize
) -> PoolSize:
    """The sizes to give the driver. A size that is given, here or in the URI, beats the profile's.

    Raises ConfigurationError for a size that is out of range, or given both here and in the URI,
    and for a profile that does not exist.
    """
    if profile is not None and profile not in get_args(PoolProfile):
        names = ", ".join(map(repr, get_args(PoolProfile)))
        shown = repr(profile) if isinstance(profile, str) else type(profile).__name__
        raise ConfigurationError("pool_profile", f"must be one of {names}, not {shown:.80}")
    least = _check_size("min_pool_size", min_pool_size, 0, in_uri.least, "minPoolSize")
    most = _check_size("max_pool_size", max_pool_size, 1, in_uri.most, "maxPoolSize")
    known_least = in_uri.least if least is None else least
    known_most = in_uri.most if most is None else most
    # The driver takes 0 for "no limit".
    ceiling = LARGEST_POOL if known_most == 0 else known_most
    if least is not None or most is not None:
        bound = ceiling or (_DEFAULT_MOST if profile is None else LARGEST_POOL)
        if (known_least or 0) > bound:
            raise ConfigurationError(
                "min_pool_size", f"is {known_least}, above max_pool_size, which is {bound}"
            )
    if profile is None:
        return PoolSize(least, most)
    usual: Any = POOL_PROFILES[profile]  # type: ignore[index]
    if known_least is None:
        least = min(usual.least, ceiling or usual.most)
    if known_most is None:
        most = max(usual.most, known_least or 0)
    return PoolSize(least, most)


def _check_size(
    field: str, value: object, smallest: int, in_uri: int | None, option: str
) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not smallest <= value <= LARGEST_POOL:
        shown = value if type(value) is int else type(value).__name__
        raise ConfigurationError(
            field, f"must be an int from {smallest} to {LARGEST_POOL}, not {shown}"
        )
    if in_uri is not None:
        raise ConfigurationError(field, f"is also in the URI, as {option}: give one of the two")
    return value
