"""The registry of operations: whoever reads it forgets none."""

from __future__ import annotations

from typing import Any

import pytest

from credit_mongo.core.decision import Operation
from credit_mongo.core.operations import OPERATIONS
from credit_mongo.maintenance.usage.kinds import name_of
from credit_mongo.maintenance.usage.results import Sums

pytestmark = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def test_a_usage_report_has_a_sum_for_what_each_operation_adds_and_takes(
    operation: Operation[Any, Any],
) -> None:
    """An operation that is registered is neither left out nor counted under an unknown name."""
    for is_taken, kind in ((False, operation.usage.added), (True, operation.usage.taken)):
        assert kind in Sums.__dataclass_fields__
        assert name_of(operation.request_type.operation, is_taken=is_taken) == kind


def test_a_result_names_its_transaction_unless_it_opens_an_account_or_moves_nothing(
    operation: Operation[Any, Any],
) -> None:
    """Verification finds the transaction of a remembered result by one or the other."""
    names_it = "transaction_id" in operation.result_type.__dataclass_fields__
    assert names_it is (operation.moves_credits and not operation.opens_account)
