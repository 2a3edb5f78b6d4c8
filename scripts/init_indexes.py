"""Create the ledger's collections, indexes and validator. Run it as often as you like.

    python scripts/init_indexes.py --uri 'mongodb://…/?replicaSet=rs0' --database app

This is ``credit-mongo init``, with the same options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["init", *sys.argv[1:]]))
