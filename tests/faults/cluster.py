"""The replica set that the fault tests disturb, and the clients that watch it."""

from __future__ import annotations

from dataclasses import dataclass

from credit_mongo.local import LocalReplicaSet
from tests.faults.faults import Primary
from tests.integration.promises import Client, Database

__all__ = ["Cluster"]


@dataclass(frozen=True)
class Cluster:
    """A replica set, a client that no fault hits, one client for each member, and a database."""

    replica_set: LocalReplicaSet
    client: Client
    observers: list[Client]
    database: Database

    @property
    def primary(self) -> Primary:
        """The primary, on which tests set fail points."""
        return Primary(self.client)
