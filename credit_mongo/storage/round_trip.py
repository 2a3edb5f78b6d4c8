"""How far the server is."""

from __future__ import annotations

from typing import Any

from pymongo import AsyncMongoClient
from pymongo.topology_description import TopologyDescription

__all__ = ["shortest_round_trip"]


def shortest_round_trip(client: AsyncMongoClient[Any]) -> float:
    """The shortest of the last ten round trips to the primary, in seconds; 0 if not known yet.

    The driver measures one with each heartbeat, every ten seconds by default. A busy client takes
    them for longer than they are, so the shortest counts.
    """
    topology = client.topology_description
    if not isinstance(topology, TopologyDescription):
        return 0.0  # Memory is not far away.
    servers = topology.server_descriptions().values()
    return min((each.min_round_trip_time for each in servers if each.is_writable), default=0.0)
