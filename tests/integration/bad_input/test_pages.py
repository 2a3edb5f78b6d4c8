"""Cursors, limits and dates of pages: what is wrong is refused, and shows no stranger."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

import pytest

from credit_mongo import (
    CreditLedger,
    InvalidRequestError,
)
from tests.integration.bad_input.methods import (
    FUTURE,
    NAN,
    OTHER_USER,
    PAGES,
    PAST,
    USER,
    UTC,
    call,
    check_error,
)


def read_cursor(cursor: str) -> list[Any]:
    """Return a cursor's content."""
    padded = cursor + "=" * (-len(cursor) % 4)
    position: list[Any] = json.loads(base64.urlsafe_b64decode(padded))
    return position


def write_cursor(position: Any) -> str:
    """Make a cursor by hand."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


@pytest.mark.parametrize("name", PAGES)
async def test_a_cursor_is_good_for_its_user_and_its_method_alone(
    books: CreditLedger, name: str
) -> None:
    """A cursor of another user or another method is refused."""
    own = (await call(books, name, limit=1)).next_cursor
    assert len(await call(books, name, cursor=own)) == 3
    [other_name] = [other for other in PAGES if other != name]
    for cursor in (
        (await call(books, name, user_id=OTHER_USER, limit=1)).next_cursor,
        (await call(books, other_name, limit=1)).next_cursor,
        (await call(books, other_name, user_id=OTHER_USER, limit=1)).next_cursor,
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await call(books, name, cursor=cursor)
        check_error(caught.value, "cursor")


async def check_that_it_shows_no_other_user(ledger: CreditLedger, name: str, cursor: str) -> None:
    """Check that a handmade cursor is refused, or points into the same user's rows."""
    try:
        page = await call(ledger, name, cursor=cursor)
    except InvalidRequestError as error:
        check_error(error, "cursor")
    else:
        assert {row.user_id for row in page} <= {USER}


@pytest.mark.parametrize("name", PAGES)
async def test_a_cursor_with_a_changed_letter_shows_no_other_user(
    books: CreditLedger, name: str
) -> None:
    """Any letter in any position gives rows of the same user, or the typed error."""
    cursor = (await call(books, name, limit=1)).next_cursor
    for position in range(len(cursor)):
        for letter in ("A", "_", "=", "\u00e9", ""):
            tampered = cursor[:position] + letter + cursor[position + 1 :]
            await check_that_it_shows_no_other_user(books, name, tampered)


@pytest.mark.parametrize("name", PAGES)
async def test_a_cursor_to_another_position_shows_no_other_user(
    books: CreditLedger, name: str
) -> None:
    """Values of another type, or out of the database's range, give at most an empty page."""
    owner, moment, tie = read_cursor((await call(books, name, limit=1)).next_cursor)
    for value in (
        *(None, True, 1.5, NAN, "", "x", "\x00", [tie], {"$gt": 0}),
        *(0, -1, 2**63 - 1, 2**63, 2**70, -(2**63), -(2**63) - 1, 10**30),
    ):
        await check_that_it_shows_no_other_user(books, name, write_cursor([owner, moment, value]))


@pytest.mark.parametrize("name", PAGES)
async def test_a_cursor_of_another_form_is_refused(books: CreditLedger, name: str) -> None:
    """The shape, the owner or the moment is wrong."""
    cursor = (await call(books, name, limit=1)).next_cursor
    owner, moment, tie = read_cursor(cursor)
    assert write_cursor([owner, moment, tie]) == cursor
    wrong: list[Any] = [
        [],
        [owner],
        [owner, moment],
        [owner, moment, tie, tie],
        {"a": owner, "b": moment, "c": tie},
        None,
        5,
        "abc",
        *([value, moment, tie] for value in (None, "", owner[:-1], [owner], 5)),
        *([owner, value, tie] for value in (None, True, 1.5, NAN, "x", [moment], {"$gt": 0})),
        *([owner, value, tie] for value in (10**30, 2**63, -(2**63), 253_402_300_800_000)),
    ]
    for position in wrong:
        with pytest.raises(InvalidRequestError) as caught:
            await call(books, name, cursor=write_cursor(position))
        check_error(caught.value, "cursor")


@pytest.mark.parametrize("name", PAGES)
async def test_a_cursor_cannot_be_combined_with_an_offset(books: CreditLedger, name: str) -> None:
    """A cursor and an offset contradict each other."""
    cursor = (await call(books, name, limit=1)).next_cursor
    with pytest.raises(InvalidRequestError) as caught:
        await call(books, name, cursor=cursor, offset=1)
    check_error(caught.value, "offset")


@pytest.mark.parametrize("name", PAGES)
async def test_dates_in_the_wrong_order_are_refused(books: CreditLedger, name: str) -> None:
    """The start must not be after the end. An empty range is allowed."""
    with pytest.raises(InvalidRequestError) as caught:
        await call(books, name, start_date=FUTURE, end_date=PAST)
    check_error(caught.value, "start_date")
    assert len(await call(books, name, start_date=PAST, end_date=PAST)) == 0


@pytest.mark.parametrize("name", PAGES)
async def test_the_largest_limits_of_pages_are_accepted(books: CreditLedger, name: str) -> None:
    """The largest limit, offset and dates are accepted."""
    assert len(await call(books, name, limit=1000)) == 4
    assert len(await call(books, name, offset=100_000)) == 0
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert len(await call(books, name, start_date=first, end_date=last)) == 4
