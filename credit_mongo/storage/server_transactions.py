"""A transaction as the server knows it: by the id of its session, and by its number there.

The drivers keep the number to themselves. This is the only module that looks at what they keep.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import OperationFailure

__all__ = ["ServerTransaction", "fields_of", "has_begun"]

_TRANSACTION_TOO_OLD: Final = 225
_NO_SUCH_TRANSACTION: Final = 251


class ServerTransaction:
    """One transaction, which can be aborted whatever its session does meanwhile."""

    def __init__(self, server_session: Any) -> None:
        self._server_session = server_session

    @classmethod
    def latest_of(cls, session: AsyncClientSession) -> ServerTransaction | None:
        """The latest that a session has begun. None if there is no server (mongomock)."""
        own: Any = getattr(session, "delegate", session)
        if _number_of(own) is None:
            return None
        return cls(copy.copy(own._server_session))

    async def abort(self, client: AsyncMongoClient[Any]) -> None:
        """Abort it on the server, unless it has ended there already.

        The driver's session is left alone: the application may have begun its next transaction.
        """
        stand_in = client.start_session(causal_consistency=False)
        own: Any = getattr(stand_in, "delegate", stand_in)
        own._server_session = self._server_session
        command = {
            "abortTransaction": 1,
            "txnNumber": self._server_session.transaction_id,
            "autocommit": False,
        }
        try:
            await client.admin.command(command, session=stand_in)
        except OperationFailure as error:
            if error.code not in (_NO_SUCH_TRANSACTION, _TRANSACTION_TOO_OLD):
                raise


def fields_of(session: AsyncClientSession) -> dict[str, Any]:
    """The fields by which a command belongs to the session's transaction, and to no other.

    The driver adds them too, but only if the transaction is still in progress when the command is
    sent. If the application has ended it a moment before, the command would otherwise be carried
    out on its own; with these fields, the server refuses it.
    """
    number = _number_of(getattr(session, "delegate", session))
    return {} if number is None else {"txnNumber": number, "autocommit": False}


def has_begun(session: AsyncClientSession) -> bool:
    """Whether a command was sent in the session's transaction. Its snapshot is of that moment."""
    own: Any = getattr(session, "delegate", session)  # Motor's holds PyMongo's
    return not getattr(own, "_starting_transaction", False)


def _number_of(session: Any) -> Any:
    """None for sessions of mongomock's, and for those that have ended."""
    return None if session.has_ended else getattr(session, "_transaction_id", None)
