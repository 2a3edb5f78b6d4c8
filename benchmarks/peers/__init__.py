"""The peers: ledgers that get the same load, one module for each, behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from benchmarks.load import Load, Outcome

__all__ = ["BooksAreOffError", "Peer", "PeerUnavailableError"]


class PeerUnavailableError(Exception):
    """The peer can't be had on this machine; the message says why, and what would help."""


class BooksAreOffError(Exception):
    """What a peer has stored is not what it acknowledged."""


class Peer(Protocol):
    """A ledger under load. Started and stopped for every run; ``stop`` follows any ``start``."""

    @property
    def kind(self) -> str:
        """What it is, whatever its limits."""

    @property
    def name(self) -> str:
        """What the report calls it: its kind, with its limits. Of one kind, the best counts."""

    async def start(self) -> None:
        """Connect. Raises PeerUnavailableError."""

    async def prepare(self, users: Sequence[str], opening_credits: int) -> None:
        """Have no books but those of these users, with their opening credits and all indexes."""

    async def run(self, load: Load) -> Outcome:
        """Take the load: for most, `benchmarks.load.drive` with the peer's way to charge."""

    async def verify(self, outcome: Outcome) -> None:
        """Compare what is stored with what was acknowledged. Raises BooksAreOffError."""

    async def stop(self) -> None:
        """Disconnect and remove the books. Also after a start that failed."""
