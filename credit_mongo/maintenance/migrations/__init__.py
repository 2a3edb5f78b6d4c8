"""Migrations of the application's data: files, log, lock, and the runs that apply them."""
