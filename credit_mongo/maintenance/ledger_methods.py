"""The jobs that are also methods of CreditLedger.

``ledger/`` imports nothing else from ``maintenance``.
"""

from __future__ import annotations

from credit_mongo.maintenance.erase import erase
from credit_mongo.maintenance.indexes import IndexReport, ensure_all

__all__ = ["IndexReport", "ensure_all", "erase"]
