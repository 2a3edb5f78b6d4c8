"""The ledger: it takes arguments and returns results. ``core`` decides, ``engine`` writes."""

from __future__ import annotations

from credit_mongo.ledger.accounts import AccountMethods
from credit_mongo.ledger.holds import HoldMethods
from credit_mongo.ledger.records import RecordMethods
from credit_mongo.ledger.tiers import TierMethods

__all__ = ["CreditLedger"]


class CreditLedger(AccountMethods, HoldMethods, TierMethods, RecordMethods):
    """Keeps the credits of an application's users in MongoDB.

    Every operation takes effect completely or not at all, and ends within the configuration's
    ``operation_timeout_seconds``. A call repeated with the same ``idempotency_key`` returns the
    first call's result and has no second effect, as long as the ledger remembers the key
    (``idempotency.ttl_seconds``, a day by default). With ``idempotency_ttl``, a call says for its
    own key how many seconds that is: 1 second to 366 days, counted from the call that took effect.
    Repeats need not give it, and don't prolong it.

    Amounts and balances are ``int``, in the smallest unit. A datetime argument needs a time zone;
    the ledger keeps it in UTC, to the millisecond. User ids, actions, tiers and idempotency keys
    are ``str`` of 1 to 255 characters, without control characters. ``metadata`` is a mapping with
    string keys that takes at most 16 KiB as BSON and nests at most 100 levels deep.

    Besides the errors that its docstring names, any method can raise InvalidRequestError, and any
    that reaches the database StorageError (with its kinds LedgerBusyError, ReplicaSetRequiredError,
    ClockSkewError and AccountDataError): nothing was written then, and the call can be repeated.
    One that writes can also raise CommitOutcomeUnknownError: the operation may have happened.
    Repeat it with the same idempotency key, which settles it; without a key, look into the history
    before repeating it.

    With ``session``, an operation becomes part of the application's own transaction. It takes
    effect when the application commits, and the ledger doesn't retry it. A refused operation raises
    its error and leaves the transaction usable. The ledger writes the refusal's audit row outside
    the transaction, so the row stays even if the application aborts.

    If such a call ends in any other way (it is cancelled, its deadline passes, the database fails),
    the ledger aborts the transaction. The commit and later calls in this transaction raise
    TransactionAbortedError. PyMongo's ``with_transaction`` runs the transaction again if the
    failure may pass. The session itself stays usable.

    The write concern of the application's transaction decides how durable the operation is.
    MongoDB's default is ``majority``. After a commit with ``w=1``, the ledger's reads still show
    the committed data: they wait until a majority of the members has it.
    """
