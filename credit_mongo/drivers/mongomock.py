"""mongomock behind the ledger: its collections are dictionaries in memory.

mongomock has neither sessions nor most commands. What the ledger uses of them is made here: a
session undoes its writes if its transaction does not commit, and commands call the methods that do
the same. No call waits for anything, so a transaction of the ledger's is done before any other work
of the event loop. mongomock need not be installed unless the application uses it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import uuid4
from weakref import WeakKeyDictionary

from bson import ObjectId, decode, encode
from bson.binary import UuidRepresentation
from bson.codec_options import DEFAULT_CODEC_OPTIONS, CodecOptions
from pymongo.collection import ReturnDocument
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.results import InsertOneResult

from credit_mongo.drivers.synchronous import AdaptedClient, AdaptedDatabase

if TYPE_CHECKING:
    from mongomock_motor import AsyncMongoMockDatabase

    MockDatabase: TypeAlias = AsyncMongoMockDatabase[Any]

__all__ = ["adapted_database"]

Raw: TypeAlias = dict[str, Any]
Sort: TypeAlias = Sequence[tuple[str, int]] | None
_COMMAND_NOT_FOUND: Final = 59
# Until with_options says otherwise: mongomock's client knows no options.
_CODEC_OPTIONS: Final[CodecOptions[Raw]] = CodecOptions(
    tz_aware=True, uuid_representation=UuidRepresentation.STANDARD
)


def adapted_database(database: object) -> AdaptedDatabase | None:
    """A database of an AsyncMongoMockClient as PyMongo's; None for anything else."""
    mongomock_motor = sys.modules.get("mongomock_motor")
    if mongomock_motor is None or not isinstance(database, mongomock_motor.AsyncMongoMockDatabase):
        return None
    delegate: Any = database.delegate
    client = _Client(delegate.client)
    return AdaptedDatabase(client[delegate.name], _run, AdaptedClient(client, _run))


async def _run(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return function(*arguments, **options)


# What ensure_indexes creates is described here, and nothing is made of it: mongomock's own TTL
# would look at the real time, whatever the ledger's clock says.
@dataclass(slots=True)
class _Description:
    options: Raw = field(default_factory=dict)
    indexes: list[Raw] = field(default_factory=list)


_descriptions: Final[WeakKeyDictionary[Any, dict[tuple[str, str], _Description]]] = (
    WeakKeyDictionary()
)


class _Client:
    """As a synchronous ``MongoClient``."""

    options = SimpleNamespace(server_selection_timeout=1.0)

    def __init__(self, delegate: Any) -> None:
        self.delegate = delegate
        self._sessions: dict[Any, _Session] = {}

    def __getitem__(self, name: str) -> _Database:
        return _Database(self, self.delegate[name], _CODEC_OPTIONS)

    def start_session(self, **_options: Any) -> _Session:
        session = _Session(self)
        self._sessions[session.session_id["id"]] = session
        return session

    def forget(self, session_id: Mapping[str, Any]) -> None:
        """Abort the session's transaction, wherever it stands."""
        session = self._sessions.pop(session_id["id"], None)
        if session is not None:
            session.abort_transaction()


class _Session:
    """As a synchronous ``ClientSession``: it knows how to undo what its transaction has done."""

    operation_time = None
    cluster_time = None

    def __init__(self, client: _Client) -> None:
        self.client = client
        self.session_id = {"id": uuid4()}
        self.in_transaction = False
        self.has_ended = False
        self._undo: list[Callable[[], object]] = []

    def start_transaction(self, **_options: Any) -> None:
        self.in_transaction = True

    def will_undo(self, undo: Callable[[], object]) -> None:
        """If the transaction does not commit; outside of one, what is done is done."""
        if self.in_transaction:
            self._undo.append(undo)

    def commit_transaction(self) -> None:
        self._undo.clear()
        self.in_transaction = False

    def abort_transaction(self) -> None:
        while self._undo:
            self._undo.pop()()
        self.in_transaction = False

    def end_session(self) -> None:
        self.client.forget(self.session_id)
        self.has_ended = True


class _Database:
    """As a synchronous ``Database``."""

    def __init__(self, client: _Client, delegate: Any, codec_options: CodecOptions[Raw]) -> None:
        self.client = client
        self.delegate = delegate
        self.name = delegate.name
        self._codec_options = codec_options

    @property
    def codec_options(self) -> CodecOptions[Raw]:
        """How its documents are read."""
        return self._codec_options

    def with_options(
        self, codec_options: CodecOptions[Raw] | None = None, **_options: Any
    ) -> _Database:
        return _Database(self.client, self.delegate, codec_options or self._codec_options)

    def __getitem__(self, name: str) -> _Collection:
        described = _descriptions.setdefault(self.client.delegate, {})
        description = described.setdefault((self.name, name), _Description())
        return _Collection(self.delegate[name], self._codec_options, description)

    def list_collections(self, filter: Mapping[str, str]) -> _Cursor:  # noqa: A002 - PyMongo's word
        name = filter["name"]
        if name not in self.list_collection_names():
            return _Cursor(iter(()))
        options = self[name].description.options
        return _Cursor(iter([{"name": name, "type": "collection", "options": options}]))

    def list_collection_names(self) -> list[str]:
        names: list[str] = self.delegate.list_collection_names()
        return names

    def command(
        self,
        command: Mapping[str, Any] | str,
        *,
        session: _Session | None = None,
        codec_options: CodecOptions[Raw] | None = None,
        read_preference: object = None,  # noqa: ARG002 - memory has one copy
    ) -> Raw:
        if isinstance(command, str):
            command = {command: 1}
        name, argument = next(iter(command.items()))
        run = _COMMANDS.get(name)
        if run is None:
            raise OperationFailure(
                f"mongomock has no {name}: it needs a server", _COMMAND_NOT_FOUND
            )
        database = self.with_options(codec_options=codec_options)
        return {"ok": 1.0, **run(database, argument, command, session)}

    # Commands

    def _hello(self, *_: Any) -> Raw:
        return {"setName": "mongomock", "localTime": datetime.now(timezone.utc)}

    def _kill_sessions(self, session_ids: Sequence[Raw], *_: Any) -> Raw:
        for session_id in session_ids:
            self.client.forget(session_id)
        return {}

    def _find(self, collection: str, command: Raw, session: _Session | None) -> Raw:
        # Expressions would only make a value smaller.
        fields = dict.fromkeys(command["projection"], 1)
        found = self[collection].find(command["filter"], fields, session=session)
        return {"cursor": {"firstBatch": found.to_list()}}

    def _insert(self, collection: str, command: Raw, session: _Session | None) -> Raw:
        try:
            for document in command["documents"]:
                self[collection].insert_one(document, session=session)
        except DuplicateKeyError as error:
            if session is not None:
                session.abort_transaction()  # as the server does, by the same command
            return {"writeErrors": [{"code": error.code}]}
        return {"n": len(command["documents"])}

    def _update(self, collection: str, command: Raw, session: _Session | None) -> Raw:
        results = [
            self[collection].update_one(update["q"], update["u"], session=session)
            for update in command["updates"]
        ]
        return {"n": sum(result.matched_count for result in results)}

    def _delete(self, collection: str, command: Raw, session: _Session | None) -> Raw:
        results = [
            self[collection].delete_many(delete["q"], session=session)
            for delete in command["deletes"]
        ]
        return {"n": sum(result.deleted_count for result in results)}

    def _create(self, collection: str, command: Raw, _session: object) -> Raw:
        self.delegate.create_collection(collection)
        options = {name: value for name, value in command.items() if name != "create"}
        description = self[collection].description
        description.options, description.indexes = options, []
        return {}

    def _modify(self, collection: str, command: Raw, _session: object) -> Raw:
        options = {name: value for name, value in command.items() if name != "collMod"}
        self[collection].description.options.update(options)
        return {}

    def _create_indexes(self, collection: str, command: Raw, _session: object) -> Raw:
        self[collection].description.indexes += command["indexes"]
        return {}


_COMMANDS: Final[Mapping[str, Callable[..., Raw]]] = {
    "hello": _Database._hello,
    "killSessions": _Database._kill_sessions,
    "find": _Database._find,
    "insert": _Database._insert,
    "update": _Database._update,
    "delete": _Database._delete,
    "create": _Database._create,
    "collMod": _Database._modify,
    "createIndexes": _Database._create_indexes,
}


class _Lacking:
    """What is not made here is no bug of the caller's, who is told so."""

    def __getattr__(self, name: str) -> Any:
        raise OperationFailure(f"mongomock has no {name}: it needs a server", _COMMAND_NOT_FOUND)


class _Collection(_Lacking):
    """As a synchronous ``Collection``. Documents come and go as BSON has them."""

    def __init__(
        self, delegate: Any, codec_options: CodecOptions[Raw], description: _Description
    ) -> None:
        self.description = description
        self._delegate = delegate
        self._codec_options = codec_options

    def _stored(self, value: Mapping[str, Any]) -> Raw:
        # mongomock's own dates have no time zone.
        encoded = encode(value, codec_options=self._codec_options)
        return decode(encoded, codec_options=DEFAULT_CODEC_OPTIONS)

    def _read(self, documents: Iterable[Raw]) -> list[Raw]:
        return [decode(encode(d), codec_options=self._codec_options) for d in documents]

    # Reads

    def find(
        self,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - PyMongo's word
        projection: Mapping[str, int] | None = None,
        *,
        sort: Sort = None,
        skip: int = 0,
        limit: int = 0,
        session: _Session | None = None,  # noqa: ARG002 - its transaction's writes are done
        **_options: Any,
    ) -> _Cursor:
        found = self._delegate.find(
            self._stored(filter or {}), projection or None, sort=sort, skip=skip, limit=limit
        )
        return _Cursor(found, self._read)

    def find_one(
        self,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - PyMongo's word
        projection: Mapping[str, int] | None = None,
        **options: Any,
    ) -> Raw | None:
        return next(iter(self.find(filter, projection, **options, limit=1).to_list()), None)

    def aggregate(self, pipeline: Sequence[Raw], **_options: Any) -> _Cursor:
        stages = self._stored({"stages": pipeline})["stages"]
        return _Cursor(self._delegate.aggregate(stages), self._read)

    def count_documents(self, filter: Mapping[str, Any], **_options: Any) -> int:  # noqa: A002
        count: int = self._delegate.count_documents(self._stored(filter))
        return count

    def list_indexes(self) -> _Cursor:
        return _Cursor(iter([*self._delegate.list_indexes(), *self.description.indexes]))

    # Writes

    def insert_one(self, document: Raw, *, session: _Session | None = None) -> InsertOneResult:
        document.setdefault("_id", ObjectId())
        inserted: InsertOneResult = self._delegate.insert_one(self._stored(document))
        self._will_undo(session, [], inserted.inserted_id)
        return inserted

    def update_one(
        self,
        filter: Mapping[str, Any],  # noqa: A002 - PyMongo's word
        update: Mapping[str, Any],
        *,
        upsert: bool = False,
        session: _Session | None = None,
    ) -> Any:
        query = self._stored(filter)
        before = list(self._delegate.find(query, limit=1))
        updated = self._delegate.update_one(query, self._stored(update), upsert=upsert)
        self._will_undo(session, before, updated.upserted_id)
        return updated

    def delete_one(self, filter: Mapping[str, Any], *, session: _Session | None = None) -> Any:  # noqa: A002
        query = self._stored(filter)
        self._will_undo(session, list(self._delegate.find(query, limit=1)))
        return self._delegate.delete_one(query)

    def delete_many(
        self,
        filter: Mapping[str, Any],  # noqa: A002 - PyMongo's word
        *,
        session: _Session | None = None,
        **_options: Any,
    ) -> Any:
        query = self._stored(filter)
        self._will_undo(session, list(self._delegate.find(query)))
        return self._delegate.delete_many(query)

    def find_one_and_delete(
        self,
        filter: Mapping[str, Any],  # noqa: A002 - PyMongo's word
        *,
        session: _Session | None = None,
    ) -> Raw | None:
        found = self.find_one(filter)
        self.delete_one(filter, session=session)
        return found

    def find_one_and_update(
        self,
        filter: Mapping[str, Any],  # noqa: A002 - PyMongo's word
        update: Mapping[str, Any],
        *,
        upsert: bool = False,
        return_document: bool = ReturnDocument.BEFORE,
        session: _Session | None = None,
    ) -> Raw | None:
        before = self.find_one(filter, {"_id": 1})
        updated = self.update_one(filter, update, upsert=upsert, session=session)
        updated_id = updated.upserted_id if before is None else before["_id"]
        return self.find_one({"_id": updated_id}) if return_document else before

    def _will_undo(
        self, session: _Session | None, before: Sequence[Raw], added_id: object = None
    ) -> None:
        if session is None:
            return

        def undo() -> None:
            if added_id is not None:
                self._delegate.delete_one({"_id": added_id})
            for document in before:
                self._delegate.replace_one({"_id": document["_id"]}, document, upsert=True)

        session.will_undo(undo)


class _Cursor(_Lacking):
    """As a synchronous ``Cursor``."""

    def __init__(self, delegate: Any, read: Callable[[Iterable[Raw]], list[Raw]] = list) -> None:
        self._delegate = delegate
        self._read = read

    def to_list(self, length: int | None = None) -> list[Raw]:
        found = [d for d, _ in zip(self._delegate, range(length or sys.maxsize), strict=False)]
        return self._read(found)
