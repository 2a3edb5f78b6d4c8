"""``python -m credit_mongo``: the command line, where ``credit-mongo`` is not on PATH."""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main())
