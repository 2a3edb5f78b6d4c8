"""The archive: old transactions and audit logs move away, and the books stay provable."""
