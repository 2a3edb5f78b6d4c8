"""What one would check first if something is wrong with a ledger's database, each with a remedy."""
