"""Medici 7, from npm, on the same replica set: a Node program that takes the load by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from pymongo import AsyncMongoClient

from benchmarks.load import COST, DRAIN_SECONDS, LONGEST_WINDOW_SECONDS, Load, Outcome
from benchmarks.peers import BooksAreOffError, PeerUnavailableError

__all__ = ["PACKAGES", "MediciPeer"]

PACKAGES: Final = {"medici": "7.4.0", "mongoose": "9.12.1"}
_PROGRAM: Final = Path(__file__).with_suffix(".mjs")
# Kept from one benchmark to the next; git-ignored.
_DIRECTORY: Final = Path(__file__).parents[2] / ".bench" / "medici"
_INSTALL_SECONDS: Final = 180
_SETTLE_SECONDS: Final = 1.0


class MediciPeer:
    """Medici as its README shows, or with limits that its users could set.

    Without ``snapshots``, it never stores a balance; with ``at_a_time``, at most so many charges
    are under way at once, the others wait their turn.
    """

    kind = "Medici"

    def __init__(self, uri: str, *, snapshots: bool = True, at_a_time: int = 0) -> None:
        limits = ["no snapshots"] * (not snapshots) + [f"{at_a_time} at a time"] * bool(at_a_time)
        self.name = ", ".join([self.kind, *limits])
        self._at_a_time = at_a_time
        self._uri = uri
        self._snapshots = snapshots
        self._database_name = f"benchmark_{uuid4().hex[:12]}"
        self._opening_credits = 0
        self._users: Sequence[str] = ()
        self._client: AsyncMongoClient[dict[str, Any]] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Install the packages, unless they are, and connect. Raises PeerUnavailableError."""
        await asyncio.to_thread(_install)
        self._client = AsyncMongoClient(self._uri)

    async def prepare(self, users: Sequence[str], opening_credits: int) -> None:
        """Note the users: the program opens their accounts, on an empty database."""
        self._users, self._opening_credits = users, opening_credits

    async def run(self, load: Load) -> Outcome:
        """Let the program take the load."""
        job = {
            "uri": self._uri,
            "database": self._database_name,
            "users": self._users,
            "openingCredits": self._opening_credits,
            "cost": COST,
            "callers": load.callers,
            "atATime": self._at_a_time,
            "hotShare": load.hot_share,
            "warmUpSeconds": load.warm_up_seconds,
            "seconds": load.seconds,
            "longestSeconds": LONGEST_WINDOW_SECONDS,
            "drainSeconds": DRAIN_SECONDS,
            "snapshots": self._snapshots,
        }
        self._process = await asyncio.create_subprocess_exec(
            *("node", _PROGRAM, _DIRECTORY, json.dumps(job)),
            stdin=PIPE,
            stdout=PIPE,
            limit=2**24,
            start_new_session=True,  # Ctrl-C in a terminal is ours to handle
        )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        assert await stdout.readline() == b"ready\n", "Medici did not open its accounts"
        stdin.write(b"go\n")
        values = json.loads(await stdout.readline())
        await self._process.wait()
        return Outcome(**values)

    async def verify(self, outcome: Outcome) -> None:
        """Compare the books with what was acknowledged. Raises BooksAreOffError."""
        assert self._client is not None
        if outcome.unknown:
            await asyncio.sleep(_SETTLE_SECONDS)
        transactions = self._client[self._database_name]["medici_transactions"]
        total = {"$sum": {"$subtract": ["$credit", "$debit"]}}
        sums = await transactions.aggregate(
            [{"$group": {"_id": "$accounts", "total": total, "rows": {"$sum": 1}}}]
        )
        rows = 0
        balances: dict[str, int] = {}
        async for row in sums:
            balances[row["_id"]] = round(row["total"])
            rows += row["rows"]
        charges = 0
        for user_id in self._users:
            paid = self._opening_credits - balances.get(f"Accounts:{user_id}", 0)
            least = outcome.acknowledged.get(user_id, 0)
            most = least + outcome.unknown.get(user_id, 0)
            if paid % COST or not least <= paid // COST <= most:
                raise BooksAreOffError(f"{user_id}: paid {paid} for {least} charges at {COST}")
            charges += paid // COST
        journals = await self._client[self._database_name]["medici_journals"].count_documents({})
        if journals != charges + 1 or rows != 2 * charges + len(self._users) + 1:
            raise BooksAreOffError(f"{journals} journals, {rows} rows, {charges} charges")

    async def stop(self) -> None:
        """End the program, remove the books and disconnect."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._client is not None:
            await self._client.drop_database(self._database_name)
            await self._client.close()
            self._client = None


def _install() -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise PeerUnavailableError("there is no Node here; install node (20 or newer) and npm")
    manifest = _DIRECTORY / "package.json"
    wanted = json.dumps({"private": True, "dependencies": PACKAGES})
    installed = _DIRECTORY / "node_modules" / "medici"
    if installed.is_dir() and manifest.is_file() and manifest.read_text() == wanted:
        return
    _DIRECTORY.mkdir(parents=True, exist_ok=True)
    manifest.write_text(wanted)
    options = ["--no-audit", "--no-fund", "--no-save", "--no-package-lock", "--ignore-scripts"]
    try:
        done = subprocess.run(
            ["npm", "install", *options],
            cwd=_DIRECTORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PeerUnavailableError("npm install did not end in time") from None
    if done.returncode != 0 or not installed.is_dir():
        raise PeerUnavailableError(f"npm install failed: {done.stderr.strip()[-300:]}")
