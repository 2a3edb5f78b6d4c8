"""Remove expired idempotency records if the TTL index is turned off.

    python scripts/cleanup.py --uri 'mongodb://…/?replicaSet=rs0' --database app

This is ``credit-mongo cleanup``, with the same options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["cleanup", *sys.argv[1:]]))
