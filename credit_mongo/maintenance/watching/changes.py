"""Follows the rows of the ledger as they are committed, by change streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, TypeAlias

from pymongo.errors import OperationFailure, PyMongoError

from credit_mongo.storage.codecs import Raw
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.server_errors import UNAUTHORIZED, is_gone

__all__ = ["Follower", "Take"]

Take: TypeAlias = Callable[[str, str, str, str | None], None]
"""Takes an operation, an action, a user, and the code of a refusal or None."""

_BATCH: Final = 4000
_WAIT_MILLISECONDS: Final = 1000
_PAUSE_SECONDS: Final = 0.5
_NAMES: Final = ("operation", "action", "user")
# Only what is counted, and the token (``_id``) to go on from.
_FIELDS: Final[Raw] = {
    "$project": {
        "operation": "$fullDocument.operation",
        "action": "$fullDocument.action",
        "user": "$fullDocument.userId",
        "code": "$fullDocument.details.code",
        "isRefusal": {"$eq": ["$fullDocument.status", "failed"]},
    }
}


class Follower:
    """Follows what is inserted into a collection from now on. Elections don't end it."""

    def __init__(self, database: LedgerDatabase, collection: str, inserted: Raw) -> None:
        """``inserted`` is a query for the documents that count."""
        self._database = database
        self._collection = collection
        match = {f"fullDocument.{name}": value for name, value in inserted.items()}
        self._match: Raw = {"$match": {"operationType": "insert", **match}}
        self._place: Raw = {}
        self.is_allowed: bool = True
        """False once the server has said that the role may not follow the collection."""

    async def run(self, take: Take) -> None:
        """Give each change to ``take``, until cancelled. Ends if the role may not see them."""
        while True:
            try:
                async for events in self._batches():
                    for event in events:
                        operation, action, user = (str(event.get(name)) for name in _NAMES)
                        code = str(event.get("code")) if event["isRefusal"] else None
                        take(operation, action, user, code)
            except OperationFailure as error:
                if error.code == UNAUTHORIZED:
                    self.is_allowed = False
                    return
                if not is_gone(error):
                    self._place = {}  # the server cannot go on from there
            except PyMongoError:
                pass  # no primary at the moment: go on from the same place
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _batches(self) -> AsyncIterator[Sequence[Raw]]:
        database = self._database
        command: Raw = {
            "aggregate": self._collection,
            "pipeline": [{"$changeStream": self._place}, self._match, _FIELDS],
            "cursor": {"batchSize": _BATCH},
            "readConcern": {"level": "majority"},
        }
        async with database.client.start_session(causal_consistency=False) as session:
            cursor = (await database.command(command, session=session))["cursor"]
            events = cursor["firstBatch"]
            while True:
                yield events
                if "postBatchResumeToken" in cursor:
                    self._place = {"resumeAfter": cursor["postBatchResumeToken"]}
                if not cursor["id"]:
                    self._place = {}  # the collection was dropped or renamed
                    return
                more: Raw = {
                    "getMore": cursor["id"],
                    "collection": self._collection,
                    "batchSize": _BATCH,
                    "maxTimeMS": _WAIT_MILLISECONDS,
                }
                cursor = (await database.command(more, session=session))["cursor"]
                events = cursor["nextBatch"]
