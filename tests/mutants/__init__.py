"""Planted bugs, one at a time, that the tests must find: the check that they can fail."""
