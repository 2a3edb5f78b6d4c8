"""The jobs that are methods of a ledger, too: the one door between the two.

``ledger.py`` imports nothing else of ``maintenance``.
"""

from __future__ import annotations

from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.indexes import IndexReport, ensure_indexes

__all__ = ["IndexReport", "ensure_indexes", "erase_user"]
