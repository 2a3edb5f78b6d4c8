"""Remove expired idempotency records, where the TTL index is turned off.

    python scripts/cleanup.py --uri 'mongodb://…/?replicaSet=rs0' --database app

The same as ``credit-mongo cleanup``, with its options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["cleanup", *sys.argv[1:]]))
