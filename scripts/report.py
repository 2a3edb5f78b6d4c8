"""Draw the credits granted and spent in a period: an HTML page that loads nothing, and a PNG.

    python scripts/report.py usage.html --png usage.png --from 2026-01-01 --to 2026-02-01

This is ``credit-mongo report``, with the same options and exit codes.
"""

from __future__ import annotations

import sys

from credit_mongo.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
