"""Look for everything that is wrong with the books, and settle it by corrections.

    python scripts/verify.py --uri 'mongodb://…/?replicaSet=rs0' --database app

The same as ``credit-mongo verify``, with its options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
