"""For an application's own tests."""

from credit_mongo.testing.mock import mock_ledger

__all__ = ["mock_ledger"]
