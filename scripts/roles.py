"""Print a database's least-privilege roles as commands for mongosh, or create them.

    python scripts/roles.py --database app
    python scripts/roles.py --uri 'mongodb://…/?replicaSet=rs0' --database app --create

This is ``credit-mongo roles``, with the same options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["roles", *sys.argv[1:]]))
