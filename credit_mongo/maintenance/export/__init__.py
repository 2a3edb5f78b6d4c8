"""Exports: transactions and audit logs as CSV, JSON lines or Parquet."""
