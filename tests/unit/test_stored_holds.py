"""Holds and their remembered results, as they come back from the database."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from bson import decode, encode

from credit_mongo.core.batch import KeyRecord
from credit_mongo.core.holds import HoldRecord
from credit_mongo.core.operations.capture_hold import CaptureHoldRequest, CaptureResult
from credit_mongo.core.operations.hold_results import hold_of
from credit_mongo.core.operations.place_hold import PlaceHoldRequest
from credit_mongo.core.state import HoldChanges, Remembered
from credit_mongo.storage.codecs import CODEC_OPTIONS
from credit_mongo.storage.extras import ExtrasError, extras_from
from credit_mongo.storage.holds import hold_from, hold_rows
from credit_mongo.storage.rows import idempotency_row, remembered_from

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
A_DAY = timedelta(days=1)
LIKE_A_REFERENCE = {"$ref": "jobs", "$id": 7}


def hold(price: int | str | None = 10, metadata: Any = None) -> HoldRecord:
    """A hold as it was placed."""
    return HoldRecord(
        hold_id="1" * 24,
        user_id="ann",
        action="post",
        amount=30,
        captured=0,
        uncollected=0,
        used=0,
        status="active",
        expires_at=NOW + A_DAY,
        on_timeout="settle",
        overage="available",
        price=price,
        tier=None,
        created_at=NOW,
        updated_at=NOW,
        metadata=metadata,
    )


def sent_and_read(document: dict[str, Any]) -> dict[str, Any]:
    return decode(encode(document), codec_options=CODEC_OPTIONS)


@pytest.mark.parametrize("price", [0, 10, "{token} / 10", None])
@pytest.mark.parametrize("metadata", [None, {}, LIKE_A_REFERENCE, {"job": LIKE_A_REFERENCE}])
def test_a_hold_comes_back_as_it_was_placed(price: int | str | None, metadata: Any) -> None:
    """Also with metadata that the driver would make a reference to another document."""
    placed = hold(price, metadata)
    [row] = hold_rows(HoldChanges(placed={placed.hold_id: placed}))
    found = hold_from(sent_and_read(row))
    assert found == placed
    assert hold_of(placed).metadata == metadata


@pytest.mark.parametrize("price", [0, 10, "{token} / 10", None])
def test_a_remembered_hold_comes_back_as_it_was(price: int | str | None) -> None:
    """Whatever the type of its price."""
    request = PlaceHoldRequest(
        user_id="ann",
        transaction_id="1" * 24,
        key="key",
        action="post",
        amount=30,
        variables=None,
        ttl=A_DAY,
        overage="available",
        on_timeout="settle",
    )
    result = hold_of(hold(price, LIKE_A_REFERENCE))
    assert remembered(request, result) == result


@pytest.mark.parametrize("late", [True, False])
def test_a_remembered_capture_says_as_before_whether_it_was_late(late: bool) -> None:
    """A bool stays one: callers show it as JSON."""
    request = CaptureHoldRequest(
        user_id="ann",
        transaction_id="1" * 24,
        key="key",
        hold_id="2" * 24,
        amount=1,
        variables=None,
        is_final=True,
    )
    result = CaptureResult(
        hold_id="2" * 24,
        transaction_id=None,
        user_id="ann",
        action="post",
        cost=1,
        captured=1,
        uncollected=0,
        late=late,
        balance_before=1,
        balance_after=0,
        created_at=NOW,
        metadata=None,
    )
    found = remembered(request, result)
    assert found == result
    assert found.late is late
    assert type(found.cost) is int


def test_an_unknown_overage_of_a_stored_hold_is_told_by_name() -> None:
    """It must not fail in the middle of a batch of others."""
    stored = {
        "id": "1" * 24,
        "action": "post",
        "pins": [],
        "captured": 0,
        "uncollected": 0,
        "used": 0,
        "expiresAt": NOW,
        "settlesAtEnd": True,
        "overage": "more",
    }
    with pytest.raises(ExtrasError, match=r"holds\.0\.overage"):
        extras_from({"lots": [], "holds": [stored], "overdraft": 0})


def remembered(request: Any, result: Any) -> Any:
    record = KeyRecord(request, Remembered(request.fingerprint, result), NOW)
    return remembered_from(sent_and_read(idempotency_row(record, A_DAY))).result
