"""Moments in the database: the bytes are UTC, and no account is without a time zone."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from bson import decode, encode
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions

from credit_mongo.core.extras import ActiveHold, Extras, Lot, Pin
from credit_mongo.core.values import Account
from credit_mongo.storage.codecs import CODEC_OPTIONS, FOR_USERS, Raw
from credit_mongo.storage.numbers import to_moment
from credit_mongo.storage.users import StoredUsers

MOMENT = datetime(2026, 3, 1, 12, 30, 0, 123_000, tzinfo=timezone.utc)
USERS = StoredUsers(None, UuidRepresentation.STANDARD)


@pytest.mark.parametrize("hours_east", [-8, 0, 5])
def test_a_moment_is_stored_as_the_same_bytes_in_any_time_zone(hours_east: int) -> None:
    moment = MOMENT.astimezone(timezone(timedelta(hours=hours_east)))
    assert encode({"at": to_moment(moment)}) == encode({"at": MOMENT})


@pytest.mark.parametrize("options", [CODEC_OPTIONS, FOR_USERS])
def test_an_account_has_its_moments_in_utc_however_it_was_decoded(
    options: CodecOptions[Raw],
) -> None:
    lot = Lot("a" * 24, 10, MOMENT + timedelta(days=2), 50, None)
    pins = (Pin(lot.lot_id, 4),)
    hold = ActiveHold("b" * 24, "post", pins, 0, 0, 0, MOMENT, True, "available")
    extras = Extras(lots=(lot,), holds=(hold,))
    account = Account("ann", 10, 3, "pro", MOMENT + timedelta(days=1), MOMENT, MOMENT, extras)
    stored = decode(encode(USERS.row(account)), options)
    found = USERS.account_from(stored)
    assert found == account
    # Equal moments can still differ in the time zone that they are kept in.
    assert found.extras is not None
    ends = [found.extras.lots[0].expires_at, found.extras.holds[0].expires_at]
    moments = [found.created_at, found.updated_at, found.membership_expires_at, *ends]
    assert [moment and moment.tzinfo for moment in moments] == [timezone.utc] * 5


def test_a_document_without_an_account_has_its_moments_in_utc() -> None:
    stored = decode(encode({"_id": "ann", "createdAt": MOMENT}), FOR_USERS)
    unopened = USERS.unopened_from(stored)
    assert unopened is not None
    assert unopened.created_at == MOMENT
