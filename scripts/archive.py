"""Move old transactions and audit logs to archive collections, or to files.

    python scripts/archive.py --older-than 6mo --uri 'mongodb://…/?replicaSet=rs0' --database app

This is ``credit-mongo archive``, with the same options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["archive", *sys.argv[1:]]))
