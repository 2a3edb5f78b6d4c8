"""The archive: move old transactions and audit logs away, and keep the books provable."""
