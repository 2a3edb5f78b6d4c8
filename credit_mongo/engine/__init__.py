"""Writes: how decisions reach the database."""
