"""The import of a Credit SDK deployment: its users, transactions, audit logs and keys."""
