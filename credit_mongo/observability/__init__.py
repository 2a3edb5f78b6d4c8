"""Watch a ledger from inside its application: logs of commands, and of waits for connections.

Metrics and spans are in `credit_mongo.observability.telemetry`, which needs the extra ``otel``.
"""

from __future__ import annotations

from credit_mongo.observability.command_log import CommandLog
from credit_mongo.storage.connection_waits import ConnectionWaits

__all__ = ["CommandLog", "ConnectionWaits"]
