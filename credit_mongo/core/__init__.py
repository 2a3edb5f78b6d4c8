"""Decisions: what a request does to an account. No driver, no clock, no input or output."""
