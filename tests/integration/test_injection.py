"""What a caller gives is a value, wherever it comes to stand in a query; never an operator.

Every command is watched on its way to the server.
"""

from __future__ import annotations

import contextlib
import enum
import inspect
import re
import uuid
from collections import OrderedDict, UserDict, UserString
from collections.abc import AsyncIterator, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import bson
import pytest
import pytest_asyncio
from bson import SON, Code, DBRef, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from credit_mongo import (
    CollectionNames,
    ConfigurationError,
    CreditConfig,
    CreditError,
    CreditLedger,
    InvalidRequestError,
)
from tests.integration.bad_input.methods import METHODS, OTHER_USER, USER, call, dump, make
from tests.integration.promises import Database, check_promises


class Pretending(dict[str, Any]):
    """An operator that looks like a name when it is shown."""

    def __str__(self) -> str:
        return USER

    __repr__ = __str__


OPERATOR: dict[str, Any] = {"$gt": ""}
NO_VALUES: tuple[Any, ...] = (
    OPERATOR,
    {"$ne": None},
    {"$where": "1"},
    {"$regex": ".*"},
    {"$in": [USER, OTHER_USER]},
    {"$nin": []},
    {"$exists": True},
    {"$type": "string"},
    {"$not": {"$eq": ""}},
    {"$or": [{}, {}]},
    {"$expr": {"$gt": ["$credits", 0]}},
    {"$expr": {"$function": {"body": "function() {return true}", "args": [], "lang": "js"}}},
    {"$jsonSchema": {}},
    {"$inc": {"credits": 10**6}},
    {"$set": {"credits": 10**6}},
    {"$literal": USER},
    {"$ref": "users", "$id": USER},
    {"_id": USER},
    {},
    [OPERATOR],
    [USER],
    [{"$match": {}}],
    (OPERATOR,),
    {USER},
    USER.encode(),
    bytearray(USER.encode()),
    memoryview(USER.encode()),
    bson.encode(OPERATOR),
    RawBSONDocument(bson.encode(OPERATOR)),
    SON(OPERATOR),
    OrderedDict(OPERATOR),
    MappingProxyType(OPERATOR),
    UserDict(OPERATOR),
    UserString(USER),
    Pretending(OPERATOR),
    DBRef("users", USER),
    ObjectId(),
    Regex("^user"),
    re.compile("^user"),
    MinKey(),
    MaxKey(),
    Timestamp(1, 1),
    uuid.uuid4(),
    type(USER),
    Ellipsis,
)
# A mapping is what they take; what is in it is looked at below.
MAPPINGS = {"metadata", "variables"}


class Sent(CommandListener):
    """All commands, as they were sent."""

    def __init__(self) -> None:
        self.commands: list[Mapping[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.commands.append(event.command)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Nothing to note."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Nothing to note."""


@pytest.fixture
def sent() -> Sent:
    """What the ledger sends."""
    return Sent()


@pytest_asyncio.fixture
async def watched(
    replica_set_uri: str, database: Database, config: CreditConfig, sent: Sent
) -> AsyncIterator[CreditLedger]:
    """A ledger with two users, on a client that is listened to."""
    async with (
        AsyncMongoClient[dict[str, Any]](
            replica_set_uri, tz_aware=True, event_listeners=[sent]
        ) as client,
        CreditLedger(client[database.name], config) as ledger,
    ):
        await ledger.ensure_indexes()
        for user_id in (USER, OTHER_USER):
            await ledger.create_user(user_id, credits=1000, membership_tier="premium")
            await ledger.charge(user_id, "generate-post")
        await make(database, config)
        sent.commands.clear()
        yield ledger


def test_every_public_method_is_tried() -> None:
    """With each of its arguments: the table is the one of all bad input."""
    for name, method in METHODS.items():
        given = set(inspect.signature(getattr(CreditLedger, name)).parameters) - {"self"}
        assert given == set(method.bad)


@pytest.mark.parametrize("name", METHODS)
async def test_no_operator_is_taken_for_a_value(
    watched: CreditLedger, database: Database, sent: Sent, name: str
) -> None:
    """Each is refused, by the name of its argument, before one command is sent."""
    before = await dump(database)
    wrong = []
    for argument in METHODS[name].bad.keys() - MAPPINGS:
        for value in NO_VALUES:
            try:
                await call(watched, name, **{argument: value})
            except InvalidRequestError as error:
                if error.field != argument:
                    wrong.append(f"{argument}={value!r} is refused as {error.field}")
            except Exception as error:
                wrong.append(f"{argument}={value!r} raises {error!r}")
            else:
                wrong.append(f"{argument}={value!r} is taken")
    assert not wrong, "\n".join(wrong)
    assert sent.commands == []
    assert await dump(database) == before


@pytest.mark.parametrize("name", METHODS)
async def test_no_string_becomes_an_operator(
    watched: CreditLedger, database: Database, sent: Sent, name: str
) -> None:
    """Text that reads like one is looked for as it stands, and is the name of no field."""
    texts = ('{"$gt": ""}', "$gt", "$where", "$$ROOT", "$credits", "a.$[].b", "__proto__")
    for argument in ("user_id", "action", "idempotency_key", "target_tier", "transaction_id"):
        if argument not in METHODS[name].bad:
            continue
        for text in texts:
            sent.commands.clear()
            await give(watched, name, {argument: text})
            for command in sent.commands:
                check_operators(command)
                assert text not in names_in(command), command
    untouched = await database["users"].find_one({"_id": OTHER_USER})
    assert untouched is not None
    assert untouched["seq"] == 2
    await check_promises(database)


async def give(ledger: CreditLedger, name: str, changes: dict[str, Any]) -> None:
    """A call that may be refused, for the user or the tier is not there."""
    with contextlib.suppress(CreditError):
        await call(ledger, name, **changes)


# The library's own, by where they stand.
OWN_OPERATORS = {
    "$and",
    "$gte",
    "$group",
    "$in",
    "$inc",
    "$lt",
    "$lte",
    "$match",
    "$or",
    "$set",
    "$setOnInsert",
    "$sum",
    "$type",
}
# The driver's, beside every command.
OF_THE_DRIVER = {"$db", "$clusterTime", "$readPreference"}


def names_in(document: Any) -> Iterator[str]:
    """The names of all fields, at any depth."""
    if isinstance(document, Mapping):
        for name, value in document.items():
            yield name
            yield from names_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from names_in(value)


def check_operators(command: Mapping[str, Any]) -> None:
    """No operator but the library's own."""
    operators = {name for name in names_in(command) if name.startswith("$")}
    assert operators <= OWN_OPERATORS | OF_THE_DRIVER, command


WRITES_METADATA = [name for name, method in METHODS.items() if "metadata" in method.bad]
HOSTILE: dict[str, Any] = {
    "$set": {"credits": 10**9},
    "$where": "sleep(1000)",
    "$expr": {"$function": {"body": "x", "args": [], "lang": "js"}},
    "a.$[].b": {"$inc": {"credits": 1}},
    "$$ROOT": "$credits",
    "_id": OTHER_USER,
    "userId": OTHER_USER,
}


@pytest.mark.parametrize("name", WRITES_METADATA)
async def test_operators_in_metadata_stand_in_documents_alone(
    watched: CreditLedger, database: Database, sent: Sent, name: str
) -> None:
    """They are inserted, never part of a filter, an update or a pipeline."""
    await call(watched, name, metadata=HOSTILE, idempotency_key="key")
    await call(watched, name, metadata=HOSTILE, idempotency_key="key")
    inserted = 0
    for command in sent.commands:
        if "insert" in command:
            inserted += "$where" in set(names_in(command["documents"]))
            check_operators({k: v for k, v in command.items() if k != "documents"})
        else:
            check_operators(command)
    # The audit row and, of what is more than a change of a hold, the transaction or the hold.
    assert inserted >= (1 if name in {"extend_hold", "release_hold"} else 2)
    await check_promises(database)


@pytest.mark.parametrize("name", ["charge", "quote"])
async def test_operators_in_the_names_of_variables_are_left_out(
    watched: CreditLedger, sent: Sent, name: str
) -> None:
    """No formula can use them, so the call ignores them and no command has them."""
    operators = {"$gt": 1, "token.$": 1, "$where": 1, "": 1}
    await call(watched, name, variables={"token": 5, **operators})
    assert sent.commands
    for command in sent.commands:
        check_operators(command)
        assert operators.keys().isdisjoint(names_in(command))


@pytest.mark.parametrize("name", ["charge", "quote"])
async def test_operators_are_no_values_of_variables(
    watched: CreditLedger, sent: Sent, name: str
) -> None:
    """A price that uses one is refused, and no command has the operator."""
    for value in NO_VALUES:
        with pytest.raises(InvalidRequestError) as caught:
            await call(watched, name, variables={"token": value})
        assert caught.value.field == "variables.token"
    for command in sent.commands:
        check_operators(command)


class Changing(str):
    """A string that is another one for everybody who asks."""

    __slots__ = ()

    def __str__(self) -> str:
        return OTHER_USER

    def __repr__(self) -> str:
        return repr(OTHER_USER)

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash(OTHER_USER)

    def __format__(self, _: str) -> str:
        return OTHER_USER

    def encode(self, *_: Any, **__: Any) -> bytes:
        return OTHER_USER.encode()


class Names(str, enum.Enum):
    """As applications keep their actions."""

    USER = USER
    ACTION = "generate-post"


async def test_a_subclass_of_str_is_the_string_that_it_holds(
    watched: CreditLedger, database: Database, sent: Sent
) -> None:
    """Whatever its methods say: what is checked, sent and stored is one and the same."""
    for number, user_id in enumerate(
        (Changing(USER), Names.USER, Code(USER), Code(USER, {"a": 1}))
    ):
        result = await watched.charge(
            user_id, Names.ACTION, idempotency_key=Changing(f"key-{number}")
        )
        assert (result.user_id, type(result.user_id)) == (USER, str)
        assert (result.action, type(result.action)) == ("generate-post", str)
        page = await watched.get_history(user_id, action=Names.ACTION)
        assert {row.user_id for row in page} == {USER}
    keys = {row["_id"] async for row in database["idempotency_records"].find()}
    assert keys == {"key-0", "key-1", "key-2", "key-3"}
    assert OTHER_USER not in str(sent.commands)
    assert await watched.get_balance(OTHER_USER) == 992
    await check_promises(database)


class Growing(int):
    """A number that is another one for whoever converts it."""

    def __int__(self) -> int:
        return -(10**6)

    __index__ = __int__


class Prices(enum.IntEnum):
    """As applications keep their prices."""

    FIVE = 5


@pytest.mark.parametrize("value", [Int64(5), Growing(5), Prices.FIVE])
async def test_a_subclass_of_int_is_the_number_that_it_holds(
    watched: CreditLedger, database: Database, value: int
) -> None:
    """A charge of a checked amount takes that amount."""
    result = await watched.charge(USER, "generate-post", amount=value)
    assert (result.cost, type(result.cost)) == (5, int)
    assert len(await watched.get_history(USER, limit=value, offset=Int64(1))) == 2
    await check_promises(database)


@pytest.mark.parametrize(
    "name",
    ["$cmd", "a$b", "system.users", "system.", "", "a\x00b", "a b", ".a", "é", OPERATOR, [USER], 5],
    ids=ascii,
)
@pytest.mark.parametrize("field", list(CollectionNames.model_fields))
def test_a_collection_has_a_name_that_is_no_command(field: str, name: Any) -> None:
    """The names of the configuration stand in commands as well."""
    with pytest.raises(ConfigurationError):
        CollectionNames(**{field: name})
