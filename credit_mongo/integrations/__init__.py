"""Integrations with other libraries. Each one needs its extra."""
