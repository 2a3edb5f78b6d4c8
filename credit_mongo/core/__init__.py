"""Decisions: what a request does to an account. Pure: no driver, no clock, no input or output."""
