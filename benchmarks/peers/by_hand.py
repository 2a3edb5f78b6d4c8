"""A transaction a charge, with PyMongo: as developers write it, with the driver's own repeats."""

from __future__ import annotations

from benchmarks.hand_written import charge_by_hand_until_it_works
from benchmarks.peers.mongodb import MongoPeer

__all__ = ["ByHandPeer"]


class ByHandPeer(MongoPeer):
    """The four writes and nothing else; conflicts are repeated by ``with_transaction``."""

    kind = "a transaction a charge"

    async def charge(self, user_id: str, cost: int, key: str) -> None:
        """Charge a user; raise if that may not have happened."""
        paid = await charge_by_hand_until_it_works(self.client, self.database, user_id, cost, key)
        assert paid
