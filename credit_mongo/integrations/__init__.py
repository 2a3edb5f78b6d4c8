"""The ledger at home in other libraries; each needs its extra."""
