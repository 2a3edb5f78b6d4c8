"""A soak: concurrent callers under random faults, and a check of their history."""
