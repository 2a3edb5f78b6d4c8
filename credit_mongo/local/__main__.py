"""``python -m credit_mongo.local``: a replica set that runs until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from credit_mongo.errors import CreditError
from credit_mongo.local.replica_set import LocalReplicaSet

__all__ = ["main"]


async def _serve(arguments: argparse.Namespace) -> None:
    """Keep a replica set running until SIGINT or SIGTERM."""
    task = asyncio.current_task()
    stopping = asyncio.Event()

    def stop() -> None:
        # Only once, because a second Ctrl-C must not interrupt the cleanup.
        if task is not None and not stopping.is_set():
            stopping.set()
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        async with LocalReplicaSet(
            arguments.members, arguments.data, port=arguments.port
        ) as replica_set:
            print(replica_set.uri, flush=True)
            print("It runs until Ctrl-C. In another terminal:", file=sys.stderr)
            print(f"export MONGODB_URI='{replica_set.uri}'", file=sys.stderr, flush=True)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m credit_mongo.local`` and return its exit code: 0, or 2 for an error."""
    parser = argparse.ArgumentParser(
        prog="python -m credit_mongo.local",
        description="Run a MongoDB replica set on this machine until Ctrl-C, and print its URI.",
    )
    parser.add_argument("--members", type=int, choices=(1, 3), default=1)
    parser.add_argument(
        "--data", metavar="DIR", help="keep the data in this directory (default: discard it)"
    )
    parser.add_argument("--port", type=int, help="the first member's port (default: a free one)")
    try:
        asyncio.run(_serve(parser.parse_args(arguments)))
    except KeyboardInterrupt:  # before our handlers were set, so nothing has started yet
        return 0
    except CreditError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
