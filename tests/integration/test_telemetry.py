"""Metrics and spans: what they say of real work, that they say no secret, and the dashboard."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client.parser import text_string_to_metric_families

from credit_mongo import (
    CreditConfig,
    CreditLedger,
    InsufficientCreditsError,
    InvalidRequestError,
    LedgerBusyError,
    OperationEnded,
    SessionReaped,
    TurnStuck,
    TurnTaken,
)
from credit_mongo.observability.telemetry import Telemetry
from tests.integration.promises import Client, Database, check_promises, failing, with_options

ROOT = Path(__file__).parents[2]
APP = "metered"
WORD = "opensesame"
USER = f"{WORD}@example.com"
CONFIG = CreditConfig(costs={"post": {"default": 10}}, operation_timeout_seconds=5)
UNANSWERED = {"failCommands": ["commitTransaction"], "writeConcernError": {"code": 100}}
CONFLICT = {"failCommands": ["update"], "errorCode": 112, "errorLabels": ["TransientTransaction"]}


class Metered:
    """A telemetry with what it has kept."""

    def __init__(self, *, spans: bool = False) -> None:
        self.reader = InMemoryMetricReader()
        self.spans = InMemorySpanExporter()
        self.tracing = TracerProvider()
        self.tracing.add_span_processor(SimpleSpanProcessor(self.spans))
        self.telemetry = Telemetry(
            spans=spans,
            meter_provider=MeterProvider([self.reader]),
            tracer_provider=self.tracing,
        )

    def points(self, name: str) -> list[Any]:
        """The data of a metric."""
        return [
            point
            for metric in self._metrics()
            if metric.name == f"credit_mongo.{name}"
            for point in metric.data.data_points
        ]

    def value(self, name: str, **attributes: Any) -> float:
        """The sum of a metric, or of its points with these attributes."""
        return sum(
            float(point.value)
            for point in self.points(name)
            if attributes.items() <= dict(point.attributes).items()
        )

    def text(self) -> str:
        """Everything that would leave the process."""
        spans = "".join(span.to_json() for span in self.spans.get_finished_spans())
        data = self.reader.get_metrics_data()
        return spans + ("" if data is None else data.to_json())

    def _metrics(self) -> Iterator[Any]:
        data: Any = self.reader.get_metrics_data()
        for resource in () if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                yield from scope.metrics


@asynccontextmanager
async def metered_ledger(
    uri: str, database: Database, metered: Metered
) -> AsyncIterator[CreditLedger]:
    """A ledger with this telemetry, and one user with 100 credits."""
    async with CreditLedger.connect(
        with_options(uri, appName=APP),
        database=database.name,
        config=CONFIG,
        observer=metered.telemetry,
    ) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user(USER, credits=100)
        yield ledger
    assert WORD not in metered.text()
    await check_promises(database)


async def charge(ledger: CreditLedger, key: str, **options: Any) -> None:
    """A charge with values that must not leave the process."""
    metadata = {"note": WORD}
    await ledger.charge(USER, "post", idempotency_key=WORD + key, metadata=metadata, **options)


async def test_operations_are_counted_by_kind_and_outcome(
    database: Database, replica_set_uri: str
) -> None:
    """Every call is counted: results, repeats, refusals, those in the application's transaction."""
    metered = Metered()
    async with metered_ledger(replica_set_uri, database, metered) as ledger:
        for key in ("a", "b", "b"):
            await charge(ledger, key)
        with pytest.raises(InsufficientCreditsError):
            await charge(ledger, "c", amount=1000)
        client = ledger._database.client
        async with client.start_session() as session, await session.start_transaction():
            await ledger.grant(USER, 5, action="gift", session=session)
        counted = {
            (point.attributes["operation"], point.attributes["outcome"]): point.value
            for point in metered.points("operations")
            if not point.attributes["replayed"]
        }
        assert counted == {
            ("create_user", "OK"): 1,
            ("charge", "OK"): 2,
            ("charge", "INSUFFICIENT_CREDITS"): 1,
            ("grant", "OK"): 1,
        }
        assert metered.value("operations", operation="charge", replayed=True) == 1
        [durations] = [
            point
            for point in metered.points("operation.duration")
            if dict(point.attributes) == {"operation": "grant", "outcome": "OK"}
        ]
        assert (durations.count, durations.sum > 0) == (1, True)


async def test_a_busy_ledger_s_calls_are_all_counted_and_their_durations_sampled(
    database: Database, replica_set_uri: str
) -> None:
    """A histogram costs too much for each of thousands of calls a second."""
    metered = Metered()
    async with metered_ledger(replica_set_uri, database, metered) as ledger:
        await ledger.grant(USER, 10_000, action="gift")
        await asyncio.gather(*(ledger.charge(USER, "post", amount=1) for _ in range(2000)))
        assert metered.value("operations", operation="charge", outcome="OK") == 2000
        [sample] = [
            point
            for point in metered.points("operation.duration")
            if point.attributes["operation"] == "charge"
        ]
        assert 1 < sample.count < 1000
        batches = sum(point.sum for point in metered.points("batch.size"))
        assert batches == 2002
        assert sum(point.count for point in metered.points("batch.duration")) < 500


async def test_counts_are_exact_when_calls_succeed_repeat_fail_and_are_cancelled_at_once(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """The metrics say of each outcome what the callers themselves have met."""
    metered = Metered()
    met: Counter[tuple[Any, ...]] = Counter()

    async def charge_once(ledger: CreditLedger, number: int) -> None:
        """Every third asks for too much, and two at a time share a key."""
        amount = 1 if number % 3 else 5000
        try:
            result = await ledger.charge(
                USER, "post", amount=amount, idempotency_key=f"{WORD}-{number // 6}-{amount}"
            )
        except InsufficientCreditsError as error:
            met[("charge", error.code, False)] += 1
        except asyncio.CancelledError:
            met[("charge", "CANCELLED", False)] += 1
            raise
        else:
            met[("charge", "OK", result.replayed)] += 1

    async with metered_ledger(replica_set_uri, database, metered) as ledger:
        await ledger.grant(USER, 1000, action="gift")
        async with failing(
            client, APP, {"times": 1}, failCommands=["find"], blockConnection=True, blockTimeMS=1000
        ):
            calls = [asyncio.ensure_future(charge_once(ledger, number)) for number in range(600)]
            await asyncio.sleep(0.1)
            for call in calls[::5]:
                call.cancel()
            ended = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(each, asyncio.CancelledError) for each in ended) == 120
        counted = {
            tuple(point.attributes[name] for name in ("operation", "outcome", "replayed")): (
                point.value
            )
            for point in metered.points("operations")
            if point.attributes["operation"] == "charge"
        }
    assert counted == met
    assert counted[("charge", "CANCELLED", False)] == 120
    assert min(counted[("charge", "OK", replayed)] for replayed in (True, False)) > 50


def test_counts_are_exact_when_ledgers_of_several_threads_share_a_telemetry() -> None:
    """Each has an event loop in a thread of its own, and metrics are read meanwhile."""
    metered = Metered()
    event = OperationEnded("charge", "OK", False, 0.01)

    def count(_: int) -> None:
        for _ in range(5000):
            metered.telemetry(event)

    with ThreadPoolExecutor(8) as threads:
        counting = [threads.submit(count, number) for number in range(8)]
        seen = [metered.value("operations") for _ in range(20)]
        for each in counting:
            each.result()
    assert seen == sorted(seen)
    assert metered.value("operations", operation="charge", outcome="OK") == 40_000


async def test_rare_calls_are_all_sampled_after_a_busy_time() -> None:
    """One call a second has a duration each, whatever came before."""
    from credit_mongo.observability.telemetry import _Operations

    operations = _Operations("charge", "OK", False)
    busy = sum(operations.count_one(number / 20_000) for number in range(20_000))
    assert 30 < busy < 300
    assert sum(operations.count_one(10.0 + number) for number in range(20)) == 20
    hundred = sum(operations.count_one(100 + number / 100) for number in range(200))
    assert hundred > 100
    assert operations.count == 20_220


async def test_lanes_queue_and_holds_are_read_when_they_are_asked_for(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """Also while a commit hangs, when no event tells anything."""
    metered = Metered()
    async with metered_ledger(replica_set_uri, database, metered) as ledger:
        async with ledger.hold(USER, "post"):
            assert metered.value("holds.open") == 1
        assert metered.value("holds.open") == 0
        async with failing(
            client, APP, {"times": 1}, failCommands=["find"], blockConnection=True, blockTimeMS=700
        ):
            calls = [asyncio.ensure_future(ledger.charge(USER, "post", amount=1))]
            await asyncio.sleep(0.2)
            calls += [
                asyncio.ensure_future(ledger.charge(USER, "post", amount=1)) for _ in range(5)
            ]
            await asyncio.sleep(0.1)
            assert (metered.value("lanes.busy"), metered.value("queue.length")) == (1, 5)
            await asyncio.gather(*calls)
        assert (metered.value("lanes.busy"), metered.value("queue.length")) == (0, 0)
    with pytest.raises(LedgerBusyError):
        await ledger.charge(USER, "post")
    assert metered.telemetry._loads == []
    await ledger.close()  # a second time


async def test_a_ledger_that_nobody_closed_is_not_kept(database: Database) -> None:
    """The telemetry of a whole process outlives its ledgers."""
    metered = Metered()
    for _ in range(3):
        CreditLedger(database, CONFIG, observer=metered.telemetry)
    import gc

    gc.collect()
    CreditLedger(database, CONFIG, observer=metered.telemetry)
    assert len(metered.telemetry._loads) == 1
    assert metered.value("queue.length") == 0


async def test_retries_and_unknown_outcomes_are_counted_by_reason(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """With the server's names of the errors."""
    metered = Metered()
    async with metered_ledger(replica_set_uri, database, metered) as ledger:
        async with failing(client, APP, {"times": 2}, **CONFLICT):
            await charge(ledger, "a")
        async with failing(client, APP, {"times": 1}, **UNANSWERED):
            await charge(ledger, "b")
        assert metered.value("retries", reason="conflict", error="WriteConflict") == 2
        assert metered.value("retries", reason="failure") == 1
        assert metered.value("unknown_outcomes") == 1


async def test_spans_stand_below_the_caller_s_and_failures_are_marked(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """A refusal is no error; an unknown outcome is."""
    metered = Metered(spans=True)
    tracer = metered.tracing.get_tracer("application")
    async with metered_ledger(replica_set_uri, database, metered) as ledger:
        metered.spans.clear()
        with tracer.start_as_current_span("request") as request:
            await charge(ledger, "a")
            with pytest.raises(InsufficientCreditsError):
                await charge(ledger, "b", amount=1000)
        await ledger.close()
        with pytest.raises(LedgerBusyError):
            await charge(ledger, "c")
        spans = metered.spans.get_finished_spans()
    of_charges = [span for span in spans if span.name == "credit_mongo.charge"]
    assert [(span.attributes or {})["credit_mongo.outcome"] for span in of_charges] == [
        "OK",
        "INSUFFICIENT_CREDITS",
        "LEDGER_BUSY",
    ]
    own = request.get_span_context().span_id
    assert [span.parent and span.parent.span_id for span in of_charges] == [own, own, None]
    assert [span.status.status_code for span in of_charges] == [
        StatusCode.UNSET,
        StatusCode.UNSET,
        StatusCode.ERROR,
    ]
    assert [(span.attributes or {}).get("error.type") for span in of_charges] == [
        None,
        None,
        "LEDGER_BUSY",
    ]
    first = of_charges[0]
    assert first.start_time is not None
    assert first.end_time is not None
    assert 0 < first.end_time - first.start_time < 5e9
    batches = [span for span in spans if span.name == "credit_mongo.batch"]
    assert [(span.attributes or {})["credit_mongo.requests"] for span in batches] == [1, 1]
    assert {span.parent for span in batches} == {None}


def test_spans_must_be_asked_for_by_a_flag() -> None:
    """A typo is refused at once."""
    wrong: Any = "yes"
    with pytest.raises(InvalidRequestError, match="spans"):
        Telemetry(spans=wrong)


async def _page_of_the_example(client: Client, uri: str) -> str:
    """What the example's /metrics shows after refusals, a retry and an unanswered commit."""
    from examples.metrics_app import app, telemetry

    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x", follow_redirects=True) as http,
    ):

        async def post(key: int) -> int:
            headers = {"X-User": USER, "Idempotency-Key": f"{WORD}-{key}"}
            return (await http.post("/posts", headers=headers)).status_code

        assert await post(1) == 201
        async with failing(client, APP, {"times": 1}, **CONFLICT):
            assert await post(2) == 201
        async with failing(client, APP, {"times": 1}, **UNANSWERED):
            assert await post(3) == 201
        assert [await post(key) for key in (4, 5, 6)] == [201, 201, 402]
        # What needs several processes, told as the ledger tells it.
        for event in (TurnTaken(0.1), TurnStuck(), SessionReaped(0.1)):
            telemetry(event)
        return (await http.get("/metrics")).text


async def test_the_dashboard_asks_for_metrics_and_labels_that_a_real_page_has(
    client: Client, database: Database, replica_set_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a panel asks for is on the page, and what the page has is on a panel."""
    uri = with_options(replica_set_uri, appName=APP)
    monkeypatch.setenv("MONGODB_URI", uri)
    monkeypatch.setenv("MONGODB_DATABASE", database.name)
    page = await _page_of_the_example(client, uri)
    assert WORD not in page
    labels: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels[sample.name] |= sample.labels.keys()
    # Prometheus itself adds the job.
    own = {name: kept | {"job"} for name, kept in labels.items() if "credit_mongo" in name}
    text = (ROOT / "docs/grafana.json").read_text(encoding="utf-8")
    dashboard = json.loads(text)
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = set()
    for query in queries:
        [name] = re.findall(r"credit_mongo_\w+", query)
        asked.add(name)
        grouped = re.findall(r"by \(([\w, ]+)\)", query)
        matched = re.findall(r"(\w+)(?:=|=~|!=)\"", query)
        used = {label.strip() for labels in grouped for label in labels.split(",")} | set(matched)
        assert used <= own.get(name, set()), f"{query}: {sorted(own)}"
    kinds = re.compile(r"_(bucket|sum|count|created|total)$")
    assert {kinds.sub("", name) for name in asked} == {kinds.sub("", name) for name in own}
    positions = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(positions)) == len({panel["id"] for panel in dashboard["panels"]}) == 14
