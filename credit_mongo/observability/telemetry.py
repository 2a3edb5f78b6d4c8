"""Metrics and spans of a ledger by OpenTelemetry. It needs the extra ``otel``.

Only OpenTelemetry's API is used. What is done with metrics and spans is up to the SDK that the
application sets up; without one, they go nowhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic, time_ns
from typing import Any, Final, TypeAlias

from credit_mongo.core.values import check_flag
from credit_mongo.engine.observer import (
    AttemptRetried,
    BatchEnded,
    Event,
    LedgerClosed,
    LedgerCreated,
    Load,
    OperationEnded,
    OutcomeUnknown,
    SessionReaped,
    TurnStuck,
    TurnTaken,
)
from credit_mongo.errors import CommitOutcomeUnknownError, StorageError
from credit_mongo.extras import missing

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import SpanKind, StatusCode, Tracer, TracerProvider
except ModuleNotFoundError as _error:
    raise missing(_error, "otel") from None

__all__ = ["Telemetry"]

_NAME: Final = "credit_mongo"
# Seconds. A commit takes some milliseconds; calls end by operation_timeout_seconds.
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUESTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# A histogram costs some microseconds a value. A busy ledger's durations are sampled, about so many
# a second of each kind and outcome: quantiles need no more.
_SHORTEST_GAP_SECONDS: Final = 0.01
_LONGEST_GAP_SECONDS: Final = 0.1
_LARGEST_STRIDE: Final = 1024
_NANOSECONDS: Final = 1_000_000_000

_Attributes: TypeAlias = dict[str, str | bool | int]
_Callback: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]


def _codes_of(kind: type[StorageError]) -> Iterator[str]:
    yield kind.code
    for each in kind.__subclasses__():
        yield from _codes_of(each)


# Outcomes that nobody has decided. A refusal is no failure.
_FAILURES: Final = frozenset({"ERROR", CommitOutcomeUnknownError.code, *_codes_of(StorageError)})


class Telemetry:
    """An observer that keeps metrics, and on demand makes spans: ``observer=Telemetry()``.

    One serves any number of ledgers. These are its metrics, with their attributes:

    | metric | unit | of |
    |---|---|---|
    | `credit_mongo.operations` (`operation`, `outcome`, `replayed`) | calls | each call that writes: "OK", or the error's ``code`` |
    | `credit_mongo.operation.duration` (`operation`, `outcome`) | seconds | calls; beyond about 100 a second, a sample of them |
    | `credit_mongo.batch.size` | requests | how many shared a commit |
    | `credit_mongo.batch.duration` | seconds | how long a lane was busy with a batch |
    | `credit_mongo.lanes.busy` | lanes | lanes with a batch under way |
    | `credit_mongo.queue.length` | requests | requests that wait for a batch |
    | `credit_mongo.retries` (`reason`, `error`) | attempts | failed attempts that are repeated: reason "conflict", "turn", "duplicate" or "failure" |
    | `credit_mongo.unknown_outcomes` (`error`) | commits | commits that were sent and not answered |
    | `credit_mongo.turn.wait` | seconds | waits for other processes that write the same users |
    | `credit_mongo.turns.stuck` | times | another process kept the turn for too long |
    | `credit_mongo.sessions.reaped` | transactions | transactions that were ended in the background |
    | `credit_mongo.holds.open` | holds | blocks ``async with ledger.hold(…)`` in this process |

    With ``spans=True``, each call that writes becomes a span ``credit_mongo.charge`` (or another
    operation) below the caller's own, and each batch a span ``credit_mongo.batch`` of its own. A
    span costs far more than metrics do: leave the sampling to the SDK.

    Attributes never hold user ids, keys, actions, amounts or metadata.

    ``meter_provider`` and ``tracer_provider`` are those of OpenTelemetry's SDK. Default: the global
    ones.
    """  # noqa: E501 - a table's row is one line

    def __init__(
        self,
        *,
        spans: bool = False,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._operations: dict[tuple[str, str, bool], _Operations] = {}
        self._loads: list[Callable[[], Load | None]] = []
        self._tracer = (
            trace.get_tracer(_NAME, tracer_provider=tracer_provider)
            if check_flag("spans", spans)
            else None
        )
        self._make_instruments(meter_provider)
        self._by_kind = self._handlers()

    def __call__(self, event: Event, /) -> None:
        """Take note of an event."""
        take_note = self._by_kind.get(type(event))
        if take_note is not None:
            take_note(event)

    def _handlers(self) -> dict[type[Any], Callable[[Any], None]]:
        return {
            OperationEnded: self._operation_ended,
            BatchEnded: self._batch_ended,
            AttemptRetried: lambda event: self._retries.add(
                1, {"reason": event.reason, "error": event.error}
            ),
            OutcomeUnknown: lambda event: self._unknown_outcomes.add(1, {"error": event.error}),
            TurnTaken: lambda event: self._turn_wait.record(event.waited_seconds),
            TurnStuck: lambda _: self._turns_stuck.add(1),
            SessionReaped: lambda _: self._sessions_reaped.add(1),
            LedgerCreated: self._ledger_created,
            LedgerClosed: self._ledger_closed,
        }

    def _ledger_created(self, event: LedgerCreated) -> None:
        with self._lock:
            # Without those that are gone, though nobody closed them.
            self._loads = [load for load in self._loads if load() is not None]
            self._loads.append(event.load)

    def _ledger_closed(self, event: LedgerClosed) -> None:
        with self._lock:
            self._loads = [load for load in self._loads if load is not event.load]

    def _batch_ended(self, event: BatchEnded) -> None:
        self._batch_size.record(event.requests)
        self._batch_duration.record(event.seconds)
        if self._tracer is not None:
            _make_span(
                self._tracer, f"{_NAME}.batch", event.seconds, {f"{_NAME}.requests": event.requests}
            )

    def _operation_ended(self, event: OperationEnded) -> None:
        key = event[:3]
        with self._lock:
            operations = self._operations.get(key)
            if operations is None:
                operations = self._operations[key] = _Operations(*key)
            takes = operations.count_one(monotonic())
        if takes:
            self._duration.record(event.seconds, operations.of_durations)
        if self._tracer is not None:
            name, attributes = operations.span_name, operations.of_spans
            _make_span(self._tracer, name, event.seconds, attributes, operations.have_failed)

    def _make_instruments(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(_NAME, meter_provider=provider)
        meter.create_observable_counter(
            f"{_NAME}.operations",
            [self._observe_operations],
            unit="{operation}",
            description="Calls that write, by operation and outcome",
        )
        self._duration = meter.create_histogram(
            f"{_NAME}.operation.duration",
            unit="s",
            description="From a call to its end; of a busy ledger, a sample",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._batch_size = meter.create_histogram(
            f"{_NAME}.batch.size",
            unit="{request}",
            description="Requests that shared a commit",
            explicit_bucket_boundaries_advisory=_REQUESTS,
        )
        self._batch_duration = meter.create_histogram(
            f"{_NAME}.batch.duration",
            unit="s",
            description="How long a lane was busy with a batch",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._turn_wait = meter.create_histogram(
            f"{_NAME}.turn.wait",
            unit="s",
            description="Waits for other processes that write the same users",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._retries = meter.create_counter(
            f"{_NAME}.retries",
            unit="{attempt}",
            description="Failed attempts that are repeated, by reason and error",
        )
        self._unknown_outcomes = meter.create_counter(
            f"{_NAME}.unknown_outcomes",
            unit="{commit}",
            description="Commits that were sent and not answered",
        )
        self._turns_stuck = meter.create_counter(
            f"{_NAME}.turns.stuck",
            unit="{turn}",
            description="Turns that another process kept for too long",
        )
        self._sessions_reaped = meter.create_counter(
            f"{_NAME}.sessions.reaped",
            unit="{transaction}",
            description="Transactions that were ended in the background",
        )
        for name, unit, description, field in (
            ("lanes.busy", "{lane}", "Lanes with a batch under way", "lanes"),
            ("queue.length", "{request}", "Requests that wait for a batch", "queued"),
            ("holds.open", "{hold}", "Holds that are open in this process", "open_holds"),
        ):
            meter.create_observable_up_down_counter(
                f"{_NAME}.{name}",
                [self._observe_load(field)],
                unit=unit,
                description=description,
            )

    # Called when metrics are read, from any thread

    def _observe_operations(self, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            return [Observation(each.count, each.of_counts) for each in self._operations.values()]

    def _observe_load(self, field: str) -> _Callback:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                loads = tuple(self._loads)
            found = [load() for load in loads]
            return [Observation(sum(getattr(load, field) for load in found if load is not None))]

        return observe


class _Operations:
    """The operations of one kind and outcome: all are counted, and enough durations are taken.

    They share their attributes, which are made once.
    """

    __slots__ = (
        *("_due", "_left", "_stride", "_taken_at", "count", "have_failed"),
        *("of_counts", "of_durations", "of_spans", "span_name"),
    )

    def __init__(self, operation: str, code: str, replayed: bool) -> None:
        self.of_durations: _Attributes = {"operation": operation, "outcome": code}
        self.of_counts: _Attributes = {**self.of_durations, "replayed": replayed}
        self.span_name = f"{_NAME}.{operation}"
        self.of_spans: _Attributes = {f"{_NAME}.outcome": code, f"{_NAME}.replayed": replayed}
        self.have_failed = code in _FAILURES
        if self.have_failed:
            self.of_spans["error.type"] = code
        self.count = 0
        self._stride = 1
        self._left = 1
        self._taken_at = self._due = float("-inf")

    def count_one(self, now: float) -> bool:
        """Count an operation. Return whether its duration is to be taken.

        Every n-th is, and n follows the rate. Chosen by time instead, those that end first in a
        batch would be taken too often.
        """
        self.count += 1
        self._left -= 1
        if self._left > 0 and now < self._due:
            return False
        gap = now - self._taken_at
        if gap < _SHORTEST_GAP_SECONDS:
            self._stride = min(2 * self._stride, _LARGEST_STRIDE)
        elif gap > 2 * _SHORTEST_GAP_SECONDS:
            self._stride = max(self._stride // 2, 1)
        self._left = self._stride
        self._taken_at, self._due = now, now + _LONGEST_GAP_SECONDS
        return True


def _make_span(
    tracer: Tracer, name: str, seconds: float, attributes: _Attributes, has_failed: bool = False
) -> None:
    """Make a span that ends now."""
    ended = time_ns()
    span = tracer.start_span(
        name,
        kind=SpanKind.INTERNAL,
        start_time=ended - int(seconds * _NANOSECONDS),
        attributes=attributes,
    )
    if has_failed:
        span.set_status(StatusCode.ERROR)
    span.end(ended)
