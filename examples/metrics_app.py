"""An application whose credits are watched by Prometheus: `python examples/metrics_app.py`.

It needs the extras `fastapi` and `otel`, and the packages opentelemetry-sdk,
opentelemetry-exporter-prometheus and uvicorn. It uses MONGODB_URI and MONGODB_DATABASE. Without
MONGODB_URI, it starts a temporary replica set. It listens on 127.0.0.1, on PORT (8000). Then try:

curl -X POST localhost:8000/posts -H 'X-User: ann' -H 'Idempotency-Key: 1'
curl localhost:8000/metrics

`docs/grafana.json` is a dashboard for what the second one shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Header
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import make_asgi_app

from credit_mongo import CreditConfig, CreditLedger, UserExistsError
from credit_mongo.integrations.fastapi import (
    add_credit_handlers,
    credit_lifespan,
    get_ledger,
    required_idempotency_key,
)
from credit_mongo.local import LocalReplicaSet
from credit_mongo.observability import CommandLog
from credit_mongo.observability.telemetry import Telemetry

CONFIG = CreditConfig(costs={"generate-post": {"default": 10}})

# The reader registers with prometheus_client, whose page has the metrics of the whole process.
telemetry = Telemetry(meter_provider=MeterProvider([PrometheusMetricReader()]))
app = FastAPI(
    title="Posts for credits, with metrics",
    lifespan=credit_lifespan(
        CONFIG, observer=telemetry, event_listeners=[CommandLog(slow_milliseconds=500)]
    ),
)
add_credit_handlers(app)
app.mount("/metrics", make_asgi_app())


@app.post("/posts", status_code=201)
async def generate_post(
    ledger: Annotated[CreditLedger, Depends(get_ledger)],
    key: Annotated[str, Depends(required_idempotency_key)],
    x_user: Annotated[str, Header()],
) -> dict[str, int]:
    """Write a post for 10 credits. A user who comes for the first time has 50."""
    with contextlib.suppress(UserExistsError):
        await ledger.create_user(x_user, credits=50)
    charge = await ledger.charge(x_user, "generate-post", idempotency_key=key)
    return {"credits": charge.balance_after}


async def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    logging.basicConfig()
    port = int(os.environ.get("PORT", "8000"))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    if "MONGODB_URI" in os.environ:
        await server.serve()
        return
    print("Starting a temporary replica set …", file=sys.stderr, flush=True)
    async with LocalReplicaSet() as replica_set:
        os.environ["MONGODB_URI"] = replica_set.uri
        print(f"http://127.0.0.1:{port}/metrics", file=sys.stderr, flush=True)
        await server.serve()


if __name__ == "__main__":
    asyncio.run(main())
