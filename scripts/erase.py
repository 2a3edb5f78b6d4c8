"""Erase a user and all its rows for good.

    python scripts/erase.py --user ada --requested-by 'Eve of Support' --database app

This is ``credit-mongo erase``, with the same options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["erase", *sys.argv[1:]]))
