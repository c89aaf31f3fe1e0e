"""OpenTelemetry: a span for every task, and every measure as a metric.

Needs ``opentelemetry-api`` alone (the extra ``otel``); the providers are the application's.
A task's span is INTERNAL, a child of the span that was current where the task was
registered, so that a request and what outlived it are one trace. Nothing is ever written to
that span, which has ended by then. Attempts are spans of their own when there is more than one.
Stored work carries its ``traceparent`` along: each delivery is a span of the trace that stored it,
in whichever process it runs.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Literal, get_args

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deferred._events import (
    Event,
    Execution,
    Outcome,
    StepFinished,
    TaskAbandoned,
    TaskCancelled,
    TaskDiscarded,
    TaskFailed,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
    TaskView,
)
from deferred.instrumentation._measures import BUCKETS, Kind, Measured, Recorder

__all__ = ["MetricsHook", "TracingHook"]

_SCOPE = "deferred"
_CARRIED = TraceContextTextMapPropagator()  # and no baggage: what it holds is not for a store to keep

Relation = Literal["child", "link"]


class MetricsHook(Recorder):
    """A hook that records metrics: ``Supervisor(hooks=[MetricsHook()])``.

    Args:
        meter_provider: Where the instruments come from; the global one when None.

    Example:
        >>> MetricsHook().__class__.__name__
        'MetricsHook'
    """

    def __init__(self, meter_provider: metrics.MeterProvider | None = None) -> None:
        super().__init__()
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._instruments: dict[Measured, Any] = {measured: _instrument(meter, measured) for measured in Measured}

    def record(self, measured: Measured, value: float, labels: dict[str, str]) -> None:
        """Store one value."""
        instrument = self._instruments[measured]
        if measured.value.kind is Kind.HISTOGRAM:
            instrument.record(value, labels)
        else:
            instrument.add(value, labels)


def _instrument(meter: metrics.Meter, measured: Measured) -> Any:  # of its three classes
    name, kind, unit, description = measured.value
    if kind is Kind.HISTOGRAM:
        return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=list(BUCKETS))
    if kind is Kind.COUNTER:
        return meter.create_counter(name, unit, description)
    return meter.create_up_down_counter(name, unit, description)


class _Open:
    """The spans of a task under way. Lives from its first attempt to its end."""

    __slots__ = ("attempt", "attempt_began", "span", "token")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.attempt: Span | None = None  # of the attempt under way, from the second on
        self.attempt_began = time.time_ns()
        self.token: Any = None


class TracingHook:
    """A hook that traces tasks: ``Supervisor(hooks=[TracingHook()])``.

    The span is current while the work runs: spans that the work starts, and log lines that it
    writes, are in it. Steps of the unit of work (``with ctx.step(...)``) are spans too.

    Args:
        tracer_provider: Where the tracer comes from; the global one when None.
        relation: ``"child"``: tasks belong to the trace of their request. ``"link"``: each is a
            trace of its own with a link to the request, for work that takes long.

    Raises:
        ValueError: `relation` is neither.

    Example:
        >>> TracingHook(relation="parent")
        Traceback (most recent call last):
        ...
        ValueError: relation must be one of 'child', 'link', not 'parent'
    """

    events: tuple[type[Event], ...] = (
        StepFinished,
        TaskAbandoned,
        TaskCancelled,
        TaskDiscarded,
        TaskFailed,
        TaskRetrying,
        TaskStarted,
        TaskSucceeded,
    )

    def __init__(self, tracer_provider: trace.TracerProvider | None = None, *, relation: Relation = "child") -> None:
        if relation not in get_args(Relation):
            message = f"relation must be one of {', '.join(map(repr, get_args(Relation)))}, not {relation!r}"
            raise ValueError(message)
        self._tracer: Tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._relation = relation
        self._open: dict[TaskView, _Open] = {}

    def __call__(self, event: Event) -> None:
        """Start, mark or end what the event speaks of."""
        match event:
            case TaskStarted(task=task, attempt=attempt):
                if attempt == 1 or task.idempotency_key is not None:
                    self._start(task, event.at, attempt)
                else:
                    self._start_attempt(task, attempt)
            case TaskRetrying(task=task, error=error, delay=delay) if task.idempotency_key is not None:
                self._end(task, Outcome.POSTPONED, error, delay)
            case TaskRetrying(task=task, error=error, attempt=attempt, delay=delay):
                self._end_attempt(task, error, attempt, delay)
            case TaskSucceeded(task=task):
                self._end(task, Outcome.SUCCEEDED)
            case TaskFailed(task=task, outcome=outcome, error=error):
                self._end(task, outcome, error)
            case TaskCancelled(task=task, outcome=outcome) | TaskDiscarded(task=task, outcome=outcome):
                self._end(task, outcome)
            case TaskAbandoned(task=task):
                self._end(task, Outcome.ABANDONED)
            case StepFinished():
                self._step(event)
            case _:
                pass

    def carry(self, headers: dict[str, str]) -> None:
        """Write the trace into what travels beside stored work; called by the supervisor."""
        _CARRIED.inject(headers)

    # -- tasks ------------------------------------------------------------------------------

    def _start(self, task: TaskView, at: float, attempt: int) -> None:
        """Start a task's span; told inside the task, whose context variables are its own.

        A delivery of stored work ends with its attempt, so that each is a span of its own.
        """
        attributes: dict[str, str | float] = {
            "code.function.name": task.function,
            "deferred.task.name": task.name,
            "deferred.task.id": task.id,
            "deferred.execution": task.execution.value,
            "deferred.queue_time": max(0.0, at - task.created),
        }
        around: otel_context.Context | None = None  # the current one
        if task.idempotency_key is not None:
            around = _CARRIED.extract(task.headers, otel_context.Context())
            attributes["deferred.attempt"] = attempt
            del attributes["deferred.queue_time"]  # it was stored by another clock
        if self._relation == "link" and task.execution is not Execution.SEQUENTIAL:
            origin = trace.get_current_span(around).get_span_context()
            links = [Link(origin)] if origin.is_valid else []
            span = self._tracer.start_span(task.name, otel_context.Context(), SpanKind.INTERNAL, attributes, links)
        else:
            span = self._tracer.start_span(task.name, around, SpanKind.INTERNAL, attributes)
        opened = self._open[task] = _Open(span)
        opened.token = otel_context.attach(trace.set_span_in_context(span))

    def _start_attempt(self, task: TaskView, attempt: int) -> None:
        opened = self._open.get(task)
        if opened is not None:
            opened.attempt_began = time.time_ns()
            inside = trace.set_span_in_context(opened.span)
            opened.attempt = self._tracer.start_span(
                f"attempt {attempt}", inside, SpanKind.INTERNAL, {"deferred.attempt": attempt}
            )
            otel_context.attach(trace.set_span_in_context(opened.attempt, inside))

    def _end_attempt(self, task: TaskView, error: BaseException, attempt: int, delay: float) -> None:
        """End an attempt that another follows; the first one gets its span only now."""
        opened = self._open.get(task)
        if opened is None:
            return
        span = opened.attempt
        if span is None:
            inside = trace.set_span_in_context(opened.span)
            span = self._tracer.start_span(
                f"attempt {attempt}",
                inside,
                SpanKind.INTERNAL,
                {"deferred.attempt": attempt},
                start_time=opened.attempt_began,
            )
        _blame(span, error)
        span.set_attribute("deferred.retry_delay", delay)
        span.end()
        opened.attempt = None

    def _end(
        self, task: TaskView, outcome: Outcome, error: BaseException | None = None, delay: float | None = None
    ) -> None:
        opened = self._open.pop(task, None)
        if opened is None:
            return  # it never started
        with contextlib.ExitStack() as rest:  # each is done, whatever a processor of the application's raises
            if task.execution is Execution.SEQUENTIAL:  # it ran in the variables of the handler
                rest.callback(otel_context.detach, opened.token)
            rest.callback(_finish, opened.span, outcome, error, delay)
            if opened.attempt is not None:
                rest.callback(_finish, opened.attempt, outcome, error, delay)

    # -- steps ------------------------------------------------------------------------------

    def _step(self, event: StepFinished) -> None:
        """Make a span of a step that is over, with the times that it had."""
        now = time.time_ns()
        began = now - round((event.at - event.started) * 1e9)
        span = self._tracer.start_span(event.name, None, SpanKind.INTERNAL, start_time=began)
        if event.error is not None:
            _blame(span, event.error)
        span.end(now)


def _finish(span: Span, outcome: Outcome, error: BaseException | None, delay: float | None) -> None:
    span.set_attribute("deferred.outcome", outcome.value)
    if delay is not None:
        span.set_attribute("deferred.retry_delay", delay)
    if error is not None:
        _blame(span, error)
    elif outcome is not Outcome.SUCCEEDED:
        span.set_status(Status(StatusCode.ERROR, outcome.value))
    span.end()


def _blame(span: Span, error: BaseException) -> None:
    kind = type(error)
    span.set_attribute("error.type", f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."))
    with contextlib.suppress(Exception):  # an error may refuse to be shown: its type is on the span
        span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, kind.__qualname__))
