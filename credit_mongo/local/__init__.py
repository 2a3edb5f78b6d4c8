"""A real MongoDB replica set on this machine's loopback, for development, tests and benchmarks.

``python -m credit_mongo.local`` keeps one up until Ctrl-C; `LocalReplicaSet` is the same in Python.
Linux and macOS, MongoDB 5.0 or later. Without access control: never for data that matters.
"""

from __future__ import annotations

from credit_mongo.local.members import Member, find_mongod
from credit_mongo.local.replica_set import LocalReplicaSet

__all__ = ["LocalReplicaSet", "Member", "find_mongod"]
