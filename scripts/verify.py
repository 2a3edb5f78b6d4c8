"""Find everything that is wrong with the books, and repair it with corrections.

    python scripts/verify.py --uri 'mongodb://…/?replicaSet=rs0' --database app

This is ``credit-mongo verify``, with the same options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
