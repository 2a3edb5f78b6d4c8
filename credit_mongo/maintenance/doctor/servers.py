"""Checks of the servers: reachable, a replica set, the version, defaults, clocks, TTL, disk."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Final

from pymongo.errors import OperationFailure

from credit_mongo.maintenance.doctor.findings import (
    MOST_MILLISECONDS,
    Finding,
    Patient,
    good,
    unknown,
)
from credit_mongo.maintenance.status import ttl_lag_of
from credit_mongo.maintenance.ttl_indexes import find_deleting_indexes
from credit_mongo.storage.server_errors import MAX_TIME_EXPIRED, UNAUTHORIZED

__all__ = [
    "check_clock",
    "check_connections",
    "check_dates",
    "check_disk",
    "check_members",
    "check_reachable",
    "check_ttl_monitor",
    "check_version",
    "check_write_concern",
]

_OLDEST_MAJOR_VERSION: Final = 6
# The server sweeps once a minute.
_LONG_TTL_LAG_SECONDS: Final = 180.0
_LONG_REPLICATION_LAG_SECONDS: Final = 10.0
_LITTLE_SPACE, _TOO_LITTLE_SPACE = 0.10, 0.03
_MANY_CONNECTIONS: Final = 0.8
_GIB: Final = 2**30
_HEALTHY: Final = frozenset({"PRIMARY", "SECONDARY", "ARBITER"})
CLUSTER_MONITOR: Final = "the built-in role clusterMonitor may see it"


async def check_reachable(patient: Patient) -> list[Finding]:
    """A server answers. Its answer is kept for the other checks."""
    began = time.monotonic()
    patient.hello = await patient.database.ask({"hello": 1})
    milliseconds = 1000 * (time.monotonic() - began)
    name = patient.hello.get("me") or "a mongos"
    return [good("reachable", f"{name} answered in {milliseconds:.0f} ms")]


async def check_members(patient: Patient) -> list[Finding]:
    """The server is a replica set, whose members are healthy and close behind the primary."""
    check, hello = "replica set", patient.hello
    if not patient.has_transactions:
        remedy = "start mongod with --replSet rs0, and initiate it once with rs.initiate()"
        return [Finding(check, "wrong", "a single server, which has no transactions", remedy)]
    if "setName" not in hello:
        return [good(check, "a sharded cluster")]
    name, hosts = hello["setName"], [*hello.get("hosts", ()), *hello.get("passives", ())]
    try:
        status = await patient.database.ask_admin({"replSetGetStatus": 1})
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        return [good(check, f"{name}, {_members(len(hosts))}, whose state the role may not see")]
    members = status["members"]
    ill = [
        f"{each['name']} is {each['stateStr']}"
        for each in members
        if each["stateStr"] not in _HEALTHY
    ]
    if ill:
        remedy = "start these members, or look into their logs: a commit needs a majority"
        return [Finding(check, "doubtful", f"{name}: {', '.join(ill)}", remedy)]
    newest = max(each["optimeDate"] for each in members if "optimeDate" in each)
    late = [
        f"{each['name']} is {lag.total_seconds():.0f} s behind"
        for each in members
        if (lag := newest - each.get("optimeDate", newest)).total_seconds()
        > _LONG_REPLICATION_LAG_SECONDS
    ]
    if late:
        remedy = "commits wait for a majority: give these members a faster disk or network"
        return [Finding(check, "doubtful", f"{name}: {', '.join(late)}", remedy)]
    return [good(check, f"{name}, {_members(len(members))}, all healthy")]


def _members(count: int) -> str:
    return f"{count} member{'' if count == 1 else 's'}"


async def check_version(patient: Patient) -> list[Finding]:
    """The server's version is one that this library supports."""
    build = await patient.database.ask({"buildInfo": 1})
    version = str(build["version"])
    if build["versionArray"][0] < _OLDEST_MAJOR_VERSION:
        remedy = f"upgrade the servers to MongoDB {_OLDEST_MAJOR_VERSION}.0 or newer"
        return [Finding("version", "wrong", f"MongoDB {version}", remedy)]
    return [good("version", f"MongoDB {version}")]


async def check_write_concern(patient: Patient) -> list[Finding]:
    """The defaults of the cluster, which the application's own transactions use, are durable."""
    check = "write concern"
    try:
        found = await patient.database.ask_admin({"getDefaultRWConcern": 1})
    except OperationFailure as error:
        if error.code == UNAUTHORIZED:
            return [unknown(check, CLUSTER_MONITOR)]
        raise
    # Without one, the server's own default is w: 1.
    default = found.get("defaultWriteConcern", {"w": 1})
    shown = ", ".join(f"{name}: {value!r}" for name, value in default.items() if name == "w")
    if default.get("w") == "majority":
        return [good(check, f"default {shown}")]
    remedy = (
        "the ledger itself writes with w: 'majority', but your own transactions with session= use "
        "the default. Run setDefaultRWConcern with defaultWriteConcern {w: 'majority'}"
    )
    return [Finding(check, "doubtful", f"default {shown}", remedy)]


async def check_clock(patient: Patient) -> list[Finding]:
    """This machine's clock and the server's agree."""
    allowed = patient.config.max_clock_skew_seconds
    asked = datetime.now(timezone.utc)
    hello = await patient.database.ask({"hello": 1})
    answered = datetime.now(timezone.utc)
    server: datetime = hello["localTime"]
    ahead, behind = (asked - server).total_seconds(), (server - answered).total_seconds()
    skew = max(ahead, behind, 0.0)
    seen = f"this machine and the server differ by {skew:.1f} s"
    remedy = "set the clocks of all machines by NTP"
    if skew > allowed:
        refused = f"{seen}. Operations are refused above {allowed:g} s"
        return [Finding("clocks", "wrong", refused, remedy)]
    if skew > allowed / 2:
        return [Finding("clocks", "doubtful", f"{seen}, of {allowed:g} s allowed", remedy)]
    return [good("clocks", seen)]


async def check_dates(patient: Patient) -> list[Finding]:
    """No transaction and no user is dated in the future: a wrong clock wrote it."""
    check, database = "dates", patient.database
    names, users = database.names, database.mapping
    hello = await database.ask({"hello": 1})
    # Two processes may be wrong by that much in opposite directions.
    latest = hello["localTime"] + 2 * timedelta(seconds=patient.config.max_clock_skew_seconds)
    updated = "updatedAt" if users is None else users.updated_at
    for collection, field in ((names.transactions, "createdAt"), (names.users, updated)):
        query = {field: {"$gt": latest}}
        try:
            # By the index of the transactions. There is none for users.
            cursor = await database[collection].aggregate(
                [{"$match": query}, {"$limit": 1}, {"$project": {field: 1}}],
                maxTimeMS=MOST_MILLISECONDS,
            )
            rows = await cursor.to_list()
        except OperationFailure as error:
            if error.code == MAX_TIME_EXPIRED:
                seen = f"{collection} is too large to look through"
                return [Finding(check, "unknown", seen, "credit-mongo verify looks at all dates")]
            raise
        if rows:
            seen = f"{collection} has {rows[0]['_id']!s}, dated {rows[0][field]:%Y-%m-%dT%H:%M:%SZ}"
            remedy = (
                "find the machine whose clock is wrong. The user's next operations take that date, "
                "too, until it has passed. credit-mongo verify finds all such rows"
            )
            return [Finding(check, "wrong", seen, remedy)]
    return [good(check, "no transaction or user is dated in the future")]


async def check_ttl_monitor(patient: Patient) -> list[Finding]:
    """The server removes expired keys, and no TTL index removes rows that must stay."""
    check, database = "TTL", patient.database
    deleting = await find_deleting_indexes(database)
    if deleting:
        remedy = "drop these indexes at once: the server deletes rows that the ledger must keep"
        return [Finding(check, "wrong", f"TTL indexes: {', '.join(deleting)}", remedy)]
    lag = await ttl_lag_of(database, patient.hello["localTime"])
    schedule = "run credit-mongo cleanup by a schedule, or setParameter ttlMonitorEnabled: true"
    try:
        found = await database.ask_admin({"getParameter": 1, "ttlMonitorEnabled": 1})
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
    else:
        if not found["ttlMonitorEnabled"]:
            return [Finding(check, "doubtful", "the TTL monitor is turned off", schedule)]
    if lag > _LONG_TTL_LAG_SECONDS:
        return [Finding(check, "doubtful", f"expired keys are {lag:.0f} s overdue", schedule)]
    return [good(check, f"expired keys are removed, {lag:.0f} s behind")]


async def check_disk(patient: Patient) -> list[Finding]:
    """The disk of the primary has room."""
    check = "disk"
    try:
        found = await patient.database.ask({"dbStats": 1})
    except OperationFailure as error:
        if error.code == UNAUTHORIZED:
            return [unknown(check, "the built-in role read, or clusterMonitor, may see it")]
        raise
    total, used = found.get("fsTotalSize"), found.get("fsUsedSize")
    if not total or used is None:
        return [Finding(check, "unknown", "the server doesn't say it of an empty database")]
    free = total - used
    seen = f"{free / _GIB:,.1f} GiB of {total / _GIB:,.1f} GiB free"
    remedy = "add disk space, or move old rows to another place: credit-mongo archive"
    share = free / total
    if share < _TOO_LITTLE_SPACE:
        return [Finding(check, "wrong", seen, remedy)]
    if share < _LITTLE_SPACE:
        return [Finding(check, "doubtful", seen, remedy)]
    return [good(check, seen)]


async def check_connections(patient: Patient) -> list[Finding]:
    """The primary can take more connections."""
    check = "connections"
    try:
        found = await patient.database.ask_admin({"serverStatus": 1, "metrics": 0, "wiredTiger": 0})
    except OperationFailure as error:
        if error.code == UNAUTHORIZED:
            return [unknown(check, CLUSTER_MONITOR)]
        raise
    current, available = found["connections"]["current"], found["connections"]["available"]
    seen = f"{current:,} open, {available:,} more possible"
    if current > _MANY_CONNECTIONS * (current + available):
        remedy = (
            "lower max_pool_size in your processes, or raise the server's maxIncomingConnections"
        )
        return [Finding(check, "doubtful", seen, remedy)]
    return [good(check, seen)]
