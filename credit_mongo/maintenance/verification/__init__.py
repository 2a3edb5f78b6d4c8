"""Verification: whether the books keep their promises, and corrections where they do not."""
