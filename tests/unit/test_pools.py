"""The sizes of a client's pool: what is given, what a profile adds, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from credit_mongo import ConfigurationError, Settings
from credit_mongo.config import PoolSize, check_pool
from credit_mongo.storage.connection import connect

NOT_IN_URI = PoolSize()


@pytest.mark.parametrize(
    ("given", "in_uri", "size"),
    [
        ((None, None, None), NOT_IN_URI, (None, None)),
        (("development", None, None), NOT_IN_URI, (5, 10)),
        (("production", None, None), NOT_IN_URI, (10, 20)),
        (("high-traffic", None, None), NOT_IN_URI, (20, 50)),
        ((None, 3, 7), NOT_IN_URI, (3, 7)),
        (("production", None, 200), NOT_IN_URI, (10, 200)),
        (("production", None, 4), NOT_IN_URI, (4, 4)),
        (("production", 30, None), NOT_IN_URI, (30, 30)),
        (("production", None, None), PoolSize(None, 4), (4, None)),
        (("production", None, None), PoolSize(30, None), (None, 30)),
        (("production", None, None), PoolSize(None, 0), (10, None)),
        (("production", None, None), PoolSize(1, 2), (None, None)),
    ],
)
def test_a_size_that_is_given_beats_that_of_the_profile(
    given: tuple[Any, Any, Any], in_uri: PoolSize, size: tuple[int | None, int | None]
) -> None:
    """The other size of the profile is moved if the two would not fit each other."""
    assert check_pool(*given, in_uri) == size


@pytest.mark.parametrize(
    ("given", "in_uri", "field", "reason"),
    [
        (("huge", None, None), NOT_IN_URI, "pool_profile", "must be one of 'development'"),
        ((5, None, None), NOT_IN_URI, "pool_profile", "not int"),
        ((None, -1, None), NOT_IN_URI, "min_pool_size", "from 0 to 10000, not -1"),
        ((None, None, 0), NOT_IN_URI, "max_pool_size", "from 1 to 10000, not 0"),
        ((None, None, 10_001), NOT_IN_URI, "max_pool_size", "not 10001"),
        ((None, None, True), NOT_IN_URI, "max_pool_size", "not bool"),
        ((None, None, "20"), NOT_IN_URI, "max_pool_size", "not str"),
        ((None, 8, 7), NOT_IN_URI, "min_pool_size", "is 8, above max_pool_size, which is 7"),
        ((None, 101, None), NOT_IN_URI, "min_pool_size", "which is 100"),
        ((None, 8, None), PoolSize(None, 7), "min_pool_size", "which is 7"),
        ((None, None, 7), PoolSize(8, None), "min_pool_size", "is 8"),
        ((None, None, 7), PoolSize(None, 7), "max_pool_size", "also in the URI, as maxPoolSize"),
        ((None, 7, None), PoolSize(7, None), "min_pool_size", "also in the URI, as minPoolSize"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(
    given: tuple[Any, Any, Any], in_uri: PoolSize, field: str, reason: str
) -> None:
    """The error names the size and its value."""
    with pytest.raises(ConfigurationError, match=reason) as refused:
        check_pool(*given, in_uri)
    assert refused.value.field == field


async def test_the_client_gets_the_sizes() -> None:
    """Also those of the URI, whatever the case of its options."""
    uri = "mongodb://127.0.0.1:1/?replicaSet=rs0"
    for more, options, sizes in (
        ("", {"pool_profile": "high-traffic"}, (20, 50)),
        ("&maxpoolsize=30", {"pool_profile": "high-traffic"}, (20, 30)),
        ("&MAXPOOLSIZE=30", {}, (0, 30)),
        ("", {}, (0, 100)),
    ):
        database = connect(f"{uri}{more}", "app", 5, **options)
        pool = database.client.options.pool_options
        assert (pool.min_pool_size, pool.max_pool_size) == sizes
        await database.client.close()
    with pytest.raises(ConfigurationError, match="max_pool_size: is also in the URI"):
        connect(f"{uri}&maxpoolsize=30", "app", 5, max_pool_size=30)


@pytest.mark.parametrize("listeners", [5, [5], ["x"], [print]])
def test_what_is_no_listener_is_refused(listeners: Any) -> None:
    """A typo must not be found when the first command is sent."""
    with pytest.raises(ConfigurationError, match="event_listeners: must be listeners of"):
        connect("mongodb://127.0.0.1:1", "app", 5, event_listeners=listeners)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MONGODB_MAX_POOL_SIZE", "0"),
        ("MONGODB_MAX_POOL_SIZE", "many"),
        ("MONGODB_MIN_POOL_SIZE", "-1"),
        ("MONGODB_POOL_PROFILE", "huge"),
    ],
)
def test_a_wrong_size_in_the_environment_is_refused_by_the_variable_s_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by pydantic's error, which no handler of this library's errors would catch."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        Settings()
    assert refused.value.field == name


def test_the_environment_gives_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As strings, which is all that an environment has."""
    monkeypatch.setenv("MONGODB_MAX_POOL_SIZE", "40")
    monkeypatch.setenv("MONGODB_POOL_PROFILE", "production")
    settings = Settings()
    assert (settings.pool_profile, settings.min_pool_size, settings.max_pool_size) == (
        "production",
        None,
        40,
    )
