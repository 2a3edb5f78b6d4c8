"""Sessions that a method cannot use are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from credit_mongo import (
    CreditError,
    CreditLedger,
    InvalidRequestError,
)
from tests.integration.bad_input.methods import METHODS, WRITES, call, check_error, dump
from tests.integration.promises import Client, Database, Row

WITH_SESSION = [name for name, method in METHODS.items() if "session" in method.bad]


@pytest_asyncio.fixture
async def other_client(replica_set_uri: str) -> AsyncIterator[Client]:
    """Another client on the same server."""
    async with AsyncMongoClient[Row](replica_set_uri, tz_aware=True) as other_client:
        yield other_client


@pytest.mark.drivers("pymongo", "motor")
async def test_a_session_of_another_client_is_refused(
    books: CreditLedger, other_client: Client, database: Database
) -> None:
    """This holds inside a transaction and outside: its commit is not this client's."""
    before = await dump(database)
    async with other_client.start_session() as session:
        for in_transaction in (False, True):
            if in_transaction:
                await session.start_transaction()
            for name in WITH_SESSION:
                with pytest.raises(InvalidRequestError) as caught:
                    await call(books, name, session=session)
                check_error(caught.value, "session")
    assert await dump(database) == before


@pytest.mark.drivers("pymongo", "motor")
@pytest.mark.parametrize("ending", [None, "commit_transaction", "abort_transaction", "end_session"])
async def test_a_write_in_a_session_needs_a_transaction_in_progress(
    books: CreditLedger, client: Client, database: Database, ending: str | None
) -> None:
    """Not begun, committed, aborted or ended: the write is refused, and nothing is written."""
    before = await dump(database)
    async with client.start_session() as session:
        if ending is not None:
            await session.start_transaction()
            await getattr(session, ending)()
        for name in WRITES:
            with pytest.raises(InvalidRequestError) as caught:
                await call(books, name, session=session)
            check_error(caught.value, "session")
    assert await dump(database) == before


@pytest.mark.drivers("pymongo", "motor")
async def test_a_read_accepts_a_session_without_a_transaction_unless_it_has_ended(
    books: CreditLedger, client: Client
) -> None:
    """Reads can be causally consistent. After the session's end, the error is typed."""
    reads = [name for name in WITH_SESSION if name not in WRITES]
    assert len(reads) > 3
    async with client.start_session() as session:
        for name in reads:
            await call(books, name, session=session)
    for name in reads:
        with pytest.raises(CreditError):
            await call(books, name, session=session)
