"""A database, a clock or a URI that is wrong is refused, and no password shows."""

from __future__ import annotations

import traceback
import warnings
from datetime import datetime
from typing import Any

import pymongo
import pytest

from credit_mongo import (
    ConfigurationError,
    CreditConfig,
    CreditLedger,
    RetryConfig,
    StorageError,
)
from tests.integration.bad_input.methods import USER, dump
from tests.integration.promises import Client, Database, Row


@pytest.mark.parametrize(
    "config_value", [None, {}, {"costs": {}}, CreditConfig, RetryConfig(), 5, "x"]
)
async def test_a_ledger_needs_a_configuration(
    database: Database, replica_set_uri: str, config_value: Any
) -> None:
    """A dictionary is refused, because it has not been checked."""
    with pytest.raises(ConfigurationError):
        CreditLedger(database, config_value)
    with pytest.raises(ConfigurationError):
        CreditLedger.connect(replica_set_uri, database="app", config=config_value)


async def test_a_ledger_needs_a_database_of_an_asynchronous_client(
    client: Client, database: Database, config: CreditConfig
) -> None:
    """A client, a name, a collection, or a database of the blocking driver is refused."""
    blocking = pymongo.MongoClient[Row](connect=False)
    try:
        wrong: list[Any] = [
            None,
            5,
            "app",
            {},
            client,
            database["users"],
            blocking,
            blocking["app"],
        ]
        for value in wrong:
            with pytest.raises(ConfigurationError) as caught:
                CreditLedger(value, config)
            assert "database" in str(caught.value)
    finally:
        blocking.close()


@pytest.mark.parametrize(
    "clock",
    [
        lambda: datetime(2026, 1, 1),  # noqa: DTZ001
        lambda: "2026-01-01",
        lambda: 1_770_000_000,
        lambda: None,
        lambda: datetime.fromisoformat("never"),
    ],
    ids=["naive", "string", "seconds", "none", "broken"],
)
async def test_a_clock_that_returns_no_moment_is_refused_before_anything_is_sent(
    database: Database, config: CreditConfig, clock: Any
) -> None:
    """No caller hears of an unknown outcome when nothing can have happened."""
    with pytest.raises(ConfigurationError) as caught:
        async with CreditLedger(database, config, clock=clock) as ledger:
            await ledger.create_user(USER)
    assert caught.value.field == "clock"
    assert await dump(database) == {}


PASSWORD = "open/sesame?of#ann"  # noqa: S105
QUOTED = "open%2Fsesame%3Fof%23ann"


def connect_in_production(uri: Any, database: Any, config: CreditConfig) -> CreditLedger:
    """Connect as an application does, which does not turn the driver's warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CreditLedger.connect(uri, database=database, config=config)


async def refusal_of(uri: Any, database: Any, config: CreditConfig) -> ConfigurationError:
    """Return the error of a connection that is refused before anything is sent."""
    try:
        ledger = connect_in_production(uri, database, config)
    except ConfigurationError as error:
        return error
    await ledger.close()
    pytest.fail("it was accepted")


def check_that_nothing_of_the_password_shows(error: BaseException) -> None:
    """Check that no four letters of the password appear in the message or the traceback."""
    told = "".join(traceback.format_exception_only(error)) + repr(error) + str(error.__cause__)
    for secret in (PASSWORD, QUOTED):
        for start in range(len(secret) - 3):
            assert secret[start : start + 4] not in told


BAD_OPTIONS = [
    "tls=True",
    "tls=1",
    "tls=yes",
    "ssl=TRUE",
    "tls",
    "tls=",
    "tls=true&tls=false",
    "tlsInsecure=true&tlsAllowInvalidCertificates=true",
    "tlsCAFile=/nowhere/ca.pem",
    "tlsCertificateKeyFile=/nowhere/key.pem",
    "w=majorty",
    "w=0",
    "w=-1",
    "w=majority&w=1",
    "w=1.5",
    "journal=maybe",
    "retryWrites=perhaps",
    "replicaset=rs0&replicaSet=rs1",
    "unknown=1",
    "maxpoolsise=5",
    "=x",
    "minPoolSize=10&maxPoolSize=5",
    "maxPoolSize=many",
    "socketTimeoutMS=long",
    "authMechanism=TRUST",
    "loadBalanced=true&replicaSet=rs0",
    "compressors=rar",
    "authMechanismProperties=AWS_SESSION_TOKEN:open/sesame,nonsense:sesame",
]


@pytest.mark.parametrize("options", BAD_OPTIONS)
@pytest.mark.parametrize("credentials", ["", f"ann:{QUOTED}@"], ids=["", "password"])
async def test_an_uri_means_what_it_says_or_is_refused(
    config: CreditConfig, options: str, credentials: str
) -> None:
    """What the driver would only warn about is refused: a mistyped ``tls`` would mean plaintext."""
    error = await refusal_of(f"mongodb://{credentials}127.0.0.1/?{options}", "app", config)
    assert error.field == "uri"
    check_that_nothing_of_the_password_shows(error)


@pytest.mark.parametrize(
    "uri",
    [
        None,
        5,
        b"mongodb://127.0.0.1",
        ["mongodb://127.0.0.1"],
        "",
        " ",
        "127.0.0.1",
        "http://127.0.0.1",
        "MONGODB://127.0.0.1",
        "mongodb://",
        "mongodb:///",
        "mongodb://127.0.0.1:port",
        "mongodb://127.0.0.1:99999",
        "mongodb://127.0.0.1,,127.0.0.2",
        "mongodb://a,b/?directConnection=true",
        "mongodb://127.0.0.1/?authMechanism=SCRAM-SHA-256",
        f"mongodb://ann:{PASSWORD}@127.0.0.1/",
        f"mongodb://ann:{PASSWORD}@127.0.0.1/?tls=True",
        "mongodb://ann:open/sesame@127.0.0.1/",
        "mongodb://ann:open?sesame@127.0.0.1/",
        "mongodb://ann:open%sesame@127.0.0.1/",
        "mongodb://ann:open@sesame@127.0.0.1/",
        "mongodb://ann:open:sesame@127.0.0.1/",
        "mongodb://ann:sesame",
        "mongodb://:sesame@127.0.0.1/",
        "mongodb://ann:sesame@",
        "mongodb://ann:sesame@127.0.0.1:port/",
        "mongodb://ann:sesame@127.0.0.1/?authSource=",
        "mongodb://ann:sesame@127.0.0.1/?x=sesame",
        "mongodb+srv://ann:sesame@127.0.0.1:27017,other/",
    ],
)
async def test_a_malformed_uri_is_refused_without_its_password(
    config: CreditConfig, uri: Any
) -> None:
    """An unquoted password cuts the URI in odd places, and appears in none of the pieces."""
    error = await refusal_of(uri, "app", config)
    assert error.field == "uri"
    check_that_nothing_of_the_password_shows(error)


@pytest.mark.parametrize("options", ["", "srvMaxHosts=2", "srvServiceName=mongo", "tls=true"])
async def test_a_srv_uri_is_accepted_with_its_own_options(
    config: CreditConfig, options: str
) -> None:
    """``mongodb+srv`` has options that no other URI has. No name is looked up yet."""
    uri = f"mongodb+srv://ann:{QUOTED}@cluster.example.com/?{options}"
    await connect_in_production(uri, "app", config).close()


@pytest.mark.parametrize(
    "name",
    [None, 5, b"app", [], "", "x" * 64, "é" * 32, "a.b", "a b", "a$b", "a/b", "a\x00b", "\ud800"],
    ids=ascii,
)
async def test_a_database_has_a_name_that_mongodb_allows(config: CreditConfig, name: Any) -> None:
    """The name must be valid on any platform. The check comes before anything is sent."""
    error = await refusal_of("mongodb://127.0.0.1/", name, config)
    assert error.field == "database"


async def test_an_error_of_a_silent_server_shows_no_password() -> None:
    """The driver's words on servers and credentials reach no caller with secrets in them."""
    config = CreditConfig(costs={}, operation_timeout_seconds=0.3)
    uri = f"mongodb://ann:{QUOTED}@127.0.0.1:1/?replicaSet=rs0"
    ledger = connect_in_production(uri, "app", config)
    with pytest.raises(StorageError) as caught:
        await ledger.__aenter__()
    check_that_nothing_of_the_password_shows(caught.value)
    for shown in (repr(ledger), str(ledger)):
        assert QUOTED not in shown
        assert PASSWORD not in shown
