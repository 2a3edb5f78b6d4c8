"""Tools for testing applications that use credit_mongo."""

from credit_mongo.testing.mock import mock_ledger

__all__ = ["mock_ledger"]
