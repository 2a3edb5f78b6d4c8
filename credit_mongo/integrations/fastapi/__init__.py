"""Credits in a FastAPI application. It needs the extra ``fastapi``.

- `credit_lifespan` opens and closes the ledger with the application. `get_ledger` returns it.
- `add_credit_handlers` answers the ledger's errors as RFC 9457 ``application/problem+json``.
- `Charge` charges before a handler runs, and refunds if the handler fails.
- `Hold` holds credits, and charges what was used when the response has ended, streams too.
- Routes can return every result and page of the ledger, whatever its metadata holds.
- `idempotency_key` and `required_idempotency_key` return the checked ``Idempotency-Key`` header.
"""

from credit_mongo.extras import missing

try:
    from credit_mongo.errors import (
        IdempotencyKeyError,
        MissingIdempotencyKeyError,
        RequestCompletedError,
        RequestInProgressError,
        RequestTooLargeError,
    )
    from credit_mongo.integrations.fastapi.charging import Charge
    from credit_mongo.integrations.fastapi.encoders import teach_fastapi_bson
    from credit_mongo.integrations.fastapi.header import idempotency_key, required_idempotency_key
    from credit_mongo.integrations.fastapi.holding import Hold
    from credit_mongo.integrations.fastapi.lifespan import credit_lifespan, get_ledger
    from credit_mongo.integrations.fastapi.orders import Held, Paid
    from credit_mongo.integrations.fastapi.problems import add_credit_handlers
except ModuleNotFoundError as _error:
    raise missing(_error, "fastapi") from None

teach_fastapi_bson()

__all__ = [
    "Charge",
    "Held",
    "Hold",
    "IdempotencyKeyError",
    "MissingIdempotencyKeyError",
    "Paid",
    "RequestCompletedError",
    "RequestInProgressError",
    "RequestTooLargeError",
    "add_credit_handlers",
    "credit_lifespan",
    "get_ledger",
    "idempotency_key",
    "required_idempotency_key",
]
