"""Create the collections, the indexes and the validator of the ledger; run it as often as you like.

    python scripts/init_indexes.py --uri 'mongodb://…/?replicaSet=rs0' --database app

The same as ``credit-mongo init``, with its options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["init", *sys.argv[1:]]))
