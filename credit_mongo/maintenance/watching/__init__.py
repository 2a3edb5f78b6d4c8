"""Watch a ledger from outside: what is charged and refused, by whom, and how the servers do."""
