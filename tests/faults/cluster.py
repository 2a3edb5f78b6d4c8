"""What every test of faults stands on."""

from __future__ import annotations

from dataclasses import dataclass

from credit_mongo.local import LocalReplicaSet
from tests.faults.faults import Primary
from tests.integration.promises import Client, Database

__all__ = ["Cluster"]


@dataclass(frozen=True)
class Cluster:
    """A replica set, a client that no fault is meant for, one of each member, and a database."""

    replica_set: LocalReplicaSet
    client: Client
    observers: list[Client]
    database: Database

    @property
    def primary(self) -> Primary:
        """Where fail points are set."""
        return Primary(self.client)
