"""Export a user's or everyone's transactions as CSV, JSON lines or Parquet.

    python scripts/export.py --from 2026-01-01 --to 2026-02-01 --output january.csv --database app

This is ``credit-mongo export``, with the same options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
