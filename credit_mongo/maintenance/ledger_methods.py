"""The jobs that are methods of a ledger, too: the one door between the two.

``ledger.py`` imports nothing else of ``maintenance``.
"""

from __future__ import annotations

from credit_mongo.maintenance.erase import erase
from credit_mongo.maintenance.indexes import IndexReport, ensure_all

__all__ = ["IndexReport", "ensure_all", "erase"]
