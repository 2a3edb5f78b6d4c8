"""A real MongoDB replica set on this machine's loopback, for development, tests and benchmarks.

``python -m credit_mongo.local`` keeps one running until Ctrl-C. `LocalReplicaSet` does the same in
Python. It needs Linux or macOS and MongoDB 5.0 or later. It has no access control, so never use it
for data that matters.
"""

from __future__ import annotations

from credit_mongo.local.members import Member, find_mongod
from credit_mongo.local.replica_set import LocalReplicaSet

__all__ = ["LocalReplicaSet", "Member", "find_mongod"]
