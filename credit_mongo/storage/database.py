"""The ledger's database: every read and write of the library outside of the engine goes through it.

What must hold for each command is settled here once. Reads see what a majority has, on the primary.
Writes are acknowledged by a majority and journaled. Documents are decoded as the ledger writes
them, and none shows in the driver's log. The settings of the application's client play no part.

In a transaction or a snapshot the driver sends that one's own concerns instead of these.

The methods are those of PyMongo's that the library calls, with the options that it uses. A driver's
adapter needs no others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from bson.codec_options import CodecOptions
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.collection import ReturnDocument
from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.results import DeleteResult, InsertManyResult, InsertOneResult, UpdateResult
from pymongo.write_concern import WriteConcern

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.values import check_kind, check_optional
from credit_mongo.drivers import AnyDatabase, AnySession, as_database, as_session
from credit_mongo.storage.codecs import CODEC_OPTIONS, Raw
from credit_mongo.storage.redaction import Unlogged
from credit_mongo.storage.users import StoredUsers

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BY_ID", "JOURNALED_MAJORITY", "MAJORITY", "Collection", "Cursor", "LedgerDatabase"]

JOURNALED_MAJORITY: Final[WriteConcern] = WriteConcern("majority", j=True)
MAJORITY: Final[ReadConcern] = ReadConcern("majority")

BY_ID: Final = [("_id", 1)]
"""The index that every collection has: as an order, and as a hint."""

_Query: TypeAlias = Mapping[str, Any]
_Fields: TypeAlias = Mapping[str, Any] | None
_Order: TypeAlias = Sequence[tuple[str, int]] | None
_Session: TypeAlias = AsyncClientSession | None


class LedgerDatabase:
    """The database of one ledger, with the names of its collections and the form of its users."""

    def __init__(
        self,
        driver: AsyncDatabase[Raw],
        names: CollectionNames,
        mapping: UserMapping | None,
        users: StoredUsers,
    ) -> None:
        self._driver = driver
        self._codec_options = driver.codec_options
        self._collections: dict[str, Collection] = {}
        self.client: AsyncMongoClient[Any] = driver.client
        """For sessions and transactions."""
        self.names: CollectionNames = names
        self.mapping: UserMapping | None = mapping
        """The configuration's; None where users are the ledger's own documents."""
        self.users: StoredUsers = users

    @classmethod
    def of(
        cls,
        database: AnyDatabase,
        names: CollectionNames | None = None,
        mapping: UserMapping | None = None,
        *,
        names_are: str = "collections",
    ) -> LedgerDatabase:
        """Take a database of the application's client. The default names apply if none are given.

        Raises ConfigurationError if ``database`` isn't one, and InvalidRequestError for ``names``
        or a ``mapping`` of another type. That error calls the names ``names_are``.
        """
        driver = as_database(database)
        names = check_optional(_check_names, names_are, names)
        mapping = check_optional(_check_mapping, "users", mapping)
        # UUIDs as ids are stored as the application's client stores them; all else is ours.
        users = StoredUsers.of(mapping, driver)
        ours = driver.with_options(
            codec_options=CODEC_OPTIONS,
            read_preference=ReadPreference.PRIMARY,
            read_concern=MAJORITY,
            write_concern=JOURNALED_MAJORITY,
        )
        return cls(ours, names or CollectionNames(), mapping, users)

    @property
    def name(self) -> str:
        """The database's name."""
        return self._driver.name

    @property
    def is_time_zone_aware(self) -> bool:
        """Whether the moments that it reads have a time zone."""
        return self._codec_options.tz_aware

    def session(self, session: AnySession | None) -> AsyncClientSession | None:
        """A session of the application's, for work here. Raises InvalidRequestError."""
        return as_session(session, self._driver)

    def read_as(self, codec_options: CodecOptions[Raw]) -> LedgerDatabase:
        """The same, its documents decoded in another form."""
        return self._with(codec_options=codec_options)

    def for_application(self, *, in_transaction: bool) -> Any:
        """The driver's database, for code of the application's, decoded as its client does.

        Writes are journaled by a majority. In a transaction, they have that one's concern instead:
        the server refuses any other.
        """
        return self.client.get_database(
            self.name,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern() if in_transaction else MAJORITY,
            write_concern=WriteConcern() if in_transaction else JOURNALED_MAJORITY,
        )

    def read_locally(self) -> LedgerDatabase:
        """The same as the primary has it, whether or not a majority has it yet."""
        return self._with(read_concern=ReadConcern("local"))

    def _with(self, **options: Any) -> LedgerDatabase:
        driver = self._driver.with_options(**options)
        return LedgerDatabase(driver, self.names, self.mapping, self.users)

    def __getitem__(self, name: str) -> Collection:
        found = self._collections.get(name)
        if found is None:
            found = self._collections[name] = Collection(self._driver[name])
        return found

    async def command(self, command: Raw, *, session: _Session = None) -> Raw:
        """Run a command, which brings its own concerns, on the primary."""
        with Unlogged():
            reply: Raw = await self._driver.command(
                command, session=session, codec_options=self._codec_options
            )
            return reply

    async def ask(self, command: Raw) -> Raw:
        """Run a command that only reads, and once more if its connection breaks.

        The driver repeats its own reads, but no command.
        """
        return await _twice(lambda: self.command(command))

    async def ensure(self, command: Raw) -> Raw:
        """Run a command with the same effect if repeated, such as createIndexes; repeat like `ask`.

        If the first attempt took effect, the second may say that the collection exists.
        """
        return await _twice(lambda: self.command(command))

    async def ask_admin(self, command: Raw) -> Raw:
        """Run a command that only reads on the database ``admin``, and repeat it like `ask`."""

        async def run() -> Raw:
            with Unlogged():
                admin = self.client.admin
                reply: Raw = await admin.command(command, codec_options=self._codec_options)
                return reply

        return await _twice(run)

    async def collection_names(self) -> list[str]:
        """The names of all collections and views."""
        with Unlogged():
            return await self._driver.list_collection_names()

    async def describe(self, collection: str) -> Raw | None:
        """A collection or view as the server lists it; None if there is none of this name."""
        with Unlogged():
            listed = await self._driver.list_collections(filter={"name": collection})
            found = await listed.to_list()
            return dict(found[0]) if found else None


def _check_names(field: str, value: object) -> CollectionNames:
    return check_kind(field, value, CollectionNames)


def _check_mapping(field: str, value: object) -> UserMapping:
    return check_kind(field, value, UserMapping)


async def _twice(run: Callable[[], Awaitable[Raw]]) -> Raw:
    try:
        return await run()
    except ServerSelectionTimeoutError:
        raise  # The driver has waited for a server.
    except AutoReconnect:
        return await run()


class Collection:
    """A collection of the ledger's database."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    # Reads

    def find(
        self,
        query: _Query,
        fields: _Fields = None,
        *,
        sort: _Order = None,
        skip: int = 0,
        limit: int = 0,
        batch_size: int = 0,
        hint: _Order = None,
        allow_disk_use: bool | None = None,
        session: _Session = None,
    ) -> Cursor:
        """Documents, in the order of ``sort``; nothing is sent yet."""
        found = self._driver.find(
            query,
            fields,
            sort=sort,
            skip=skip,
            limit=limit,
            batch_size=batch_size,
            hint=hint,
            allow_disk_use=allow_disk_use,
            session=session,
        )
        return Cursor(found)

    def find_raw_batches(
        self,
        query: _Query,
        *,
        sort: _Order,
        hint: _Order,
        limit: int,
        batch_size: int,
        session: _Session,
    ) -> Cursor:
        """The same; each item is a batch of BSON as the server sent it."""
        found = self._driver.find_raw_batches(
            query, sort=sort, hint=hint, limit=limit, batch_size=batch_size, session=session
        )
        return Cursor(found)

    async def find_one(
        self,
        query: _Query,
        fields: _Fields = None,
        *,
        sort: _Order = None,
        session: _Session = None,
    ) -> Raw | None:
        """The first document; None without one."""
        with Unlogged():
            found: Raw | None = await self._driver.find_one(
                query, fields, sort=sort, session=session
            )
            return found

    async def aggregate(
        self, pipeline: Sequence[Raw], *, session: _Session = None, **options: Any
    ) -> Cursor:
        """What a pipeline gives; ``options`` are those of the command."""
        with Unlogged():
            return Cursor(await self._driver.aggregate(pipeline, session=session, **options))

    async def count_documents(
        self, query: _Query, *, session: _Session = None, **options: Any
    ) -> int:
        """How many there are; ``options`` are those of the command."""
        with Unlogged():
            count: int = await self._driver.count_documents(query, session=session, **options)
            return count

    async def estimated_document_count(self) -> int:
        """About how many there are in all."""
        with Unlogged():
            count: int = await self._driver.estimated_document_count()
            return count

    async def list_indexes(self) -> list[Raw]:
        """The indexes as the server describes them."""
        with Unlogged():
            found: list[Raw] = await (await self._driver.list_indexes()).to_list()
            return found

    # Writes

    async def insert_one(self, document: Raw, *, session: _Session = None) -> InsertOneResult:
        """Insert a document, which gets an ``_id`` if it has none."""
        with Unlogged():
            done: InsertOneResult = await self._driver.insert_one(document, session=session)
            return done

    async def insert_many(
        self, documents: Sequence[Raw], *, session: _Session = None
    ) -> InsertManyResult:
        """Insert documents in their order, up to the first that is refused."""
        with Unlogged():
            done: InsertManyResult = await self._driver.insert_many(documents, session=session)
            return done

    async def update_one(
        self,
        query: _Query,
        update: Raw | Sequence[Raw],
        *,
        upsert: bool = False,
        session: _Session = None,
    ) -> UpdateResult:
        """Update the first that matches."""
        with Unlogged():
            done: UpdateResult = await self._driver.update_one(
                query, update, upsert=upsert, session=session
            )
            return done

    async def update_many(
        self, query: _Query, update: Raw | Sequence[Raw], *, session: _Session = None
    ) -> UpdateResult:
        """Update all that match."""
        with Unlogged():
            done: UpdateResult = await self._driver.update_many(query, update, session=session)
            return done

    async def delete_one(self, query: _Query, *, session: _Session = None) -> DeleteResult:
        """Delete the first that matches."""
        with Unlogged():
            done: DeleteResult = await self._driver.delete_one(query, session=session)
            return done

    async def delete_many(self, query: _Query) -> DeleteResult:
        """Delete all that match."""
        with Unlogged():
            done: DeleteResult = await self._driver.delete_many(query)
            return done

    async def delete_by_ids(
        self, ids: Sequence[Any], also: _Query | None = None, *, session: _Session = None
    ) -> DeleteResult:
        """Delete those of the documents that match ``also``."""
        # The hint is for the conditions in ``also``: by an index on one of them, the server would
        # go through everything that matches it.
        query = {"_id": {"$in": list(ids)}, **(also or {})}
        with Unlogged():
            done: DeleteResult = await self._driver.delete_many(query, hint=BY_ID, session=session)
            return done

    async def find_one_and_update(
        self,
        query: _Query,
        update: Raw | Sequence[Raw],
        *,
        upsert: bool = False,
        return_document: bool = ReturnDocument.BEFORE,
        session: _Session = None,
    ) -> Raw | None:
        """Update the first that matches; returns it as it was, or is."""
        with Unlogged():
            found: Raw | None = await self._driver.find_one_and_update(
                query, update, upsert=upsert, return_document=return_document, session=session
            )
            return found

    async def find_one_and_delete(self, query: _Query, *, session: _Session = None) -> Raw | None:
        """Delete the first that matches; returns it."""
        with Unlogged():
            found: Raw | None = await self._driver.find_one_and_delete(query, session=session)
            return found


class Cursor:
    """Results, read as lists or one by one."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    async def to_list(self, length: int | None = None) -> list[Any]:
        """The next ones, at most ``length``; empty at the end."""
        with Unlogged():
            found: list[Any] = await self._driver.to_list(length)
            return found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        with Unlogged():
            return await self._driver.__anext__()

    async def close(self) -> None:
        """Let the server forget it, whether or not all was read."""
        with Unlogged():
            await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
