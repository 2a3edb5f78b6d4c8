"""Usage: credits granted, spent and refunded over time."""
