"""Jobs around the ledger: indexes, roles, archive, verification, erasure, export and reports."""
