"""The lists of calls that tests go through are complete: no new operation can be forgotten."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Final

import pytest

from credit_mongo import CreditLedger
from credit_mongo.core.operations import OPERATIONS
from tests.faults.operations import OPERATIONS as FAULT_MATRIX
from tests.faults.test_reads import READS as READS_WITH_FAULTS
from tests.integration.test_drivers import CALLS
from tests.model.plans import METHODS as MODELLED
from tests.soak.callers import WRITTEN

# Operations that no method of the ledger asks for.
BY_OTHERS: Final = {"correction": "credit_mongo.maintenance.verification.repair"}
# Methods whose rows have another name than the method.
STORED_AS: Final = {"capture_hold": "capture"}

METHODS: Final = {
    name: set(inspect.signature(method).parameters)
    for name, method in inspect.getmembers(CreditLedger, inspect.iscoroutinefunction)
    if not name.startswith("_")
}
WRITES: Final = {name for name, parameters in METHODS.items() if "idempotency_key" in parameters}
IN_SESSIONS: Final = {name for name, parameters in METHODS.items() if "session" in parameters}


def test_each_operation_is_a_method_of_the_ledger_or_somebody_else_s() -> None:
    """The registry and the ledger know the same operations."""
    assert {STORED_AS.get(name, name) for name in WRITES} == {*OPERATIONS} - {*BY_OTHERS}
    assert {*BY_OTHERS} <= {*OPERATIONS}


# Each case of the matrix is named after its method: "charge, refused".
DISTURBED: Final = {case.name.split()[0].rstrip(",") for case in FAULT_MATRIX}


@pytest.mark.parametrize(
    ("tried", "wanted"),
    [
        pytest.param(CALLS, IN_SESSIONS, id="the drivers' sessions"),
        pytest.param(DISTURBED, WRITES, id="the fault matrix"),
        pytest.param(READS_WITH_FAULTS, IN_SESSIONS - WRITES, id="the faults of reads"),
        pytest.param(WRITTEN, WRITES, id="the soak"),
        pytest.param(MODELLED, WRITES, id="the model"),
    ],
)
def test_each_list_of_calls_has_every_method(tried: Collection[str], wanted: set[str]) -> None:
    """What is missing here is tried nowhere under faults, in sessions or beside the model."""
    assert wanted <= {*tried}
