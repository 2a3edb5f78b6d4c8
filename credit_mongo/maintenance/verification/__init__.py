"""Verification: check that the books keep their promises, and correct them where they don't."""
