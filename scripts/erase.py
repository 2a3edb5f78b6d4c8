"""Erase a user with all that is kept of it, for good.

    python scripts/erase.py --user ada --requested-by 'Eve of Support' --database app

The same as ``credit-mongo erase``, with its options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["erase", *sys.argv[1:]]))
