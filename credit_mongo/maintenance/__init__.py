"""Jobs beside the ledger: indexes and validators."""
