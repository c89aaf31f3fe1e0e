"""Spans of deferred work, as the OpenTelemetry SDK exports them."""

import asyncio
import logging
import threading

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from deferred import NonRetryableError, Retry, Supervisor, current_context, defer, sequential
from deferred.instrumentation.opentelemetry import _CARRIED, MetricsHook, TracingHook

pytestmark = pytest.mark.looptime


class BoomError(Exception):
    """What the tasks raise."""


@pytest.fixture
def tracer(provider):
    """Give the application's own tracer."""
    return provider.get_tracer("app")


def by_name(exporter):
    """Return the exported spans by their names, each of which is there once."""
    spans = exporter.get_finished_spans()
    names = [span.name for span in spans]
    assert len(names) == len(set(names)), names
    return dict(zip(names, spans, strict=True))


def parent_of(span):
    """Return the id of a span's parent."""
    return span.parent.span_id if span.parent is not None else None


async def nothing():
    """Do nothing."""


async def test_a_task_is_in_the_trace_of_its_request(exporter, provider, tracer):
    """SX-15, A62: a deferred span is a child of the request span, which has ended, and is not touched again."""
    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with tracer.start_as_current_span("request") as request, supervisor.context() as ctx:
            ctx.with_options(name="mail").defer(asyncio.sleep, 2)
        written = []
        request.set_attribute = lambda *_: written.append("attribute")
        request.add_event = lambda *_: written.append("event")
        await supervisor.drain()
    spans = by_name(exporter)
    mail = spans["mail"]
    assert mail.context.trace_id == spans["request"].context.trace_id
    assert parent_of(mail) == spans["request"].context.span_id
    assert mail.kind is SpanKind.INTERNAL
    assert mail.start_time >= spans["request"].end_time
    assert mail.attributes["code.function.name"] == "sleep"
    assert mail.attributes["deferred.task.name"] == "mail"
    assert mail.attributes["deferred.execution"] == "deferred"
    assert mail.attributes["deferred.outcome"] == "succeeded"
    assert mail.attributes["deferred.queue_time"] >= 0
    assert written == []


async def test_the_queue_time_is_what_it_waited(exporter, provider):
    """DF-06: a span says how long its task waited for the response and for a slot."""
    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(name="late").defer(nothing)
            await asyncio.sleep(3)
    assert by_name(exporter)["late"].attributes["deferred.queue_time"] == pytest.approx(3)


async def test_spans_of_the_work_are_inside(exporter, provider, tracer):
    """WD-28, WD-29, WD-31: spans that the work starts are children of the task's span, also after an await."""

    async def work():
        with tracer.start_as_current_span("one"):
            await asyncio.sleep(1)
            with tracer.start_as_current_span("deep"):
                pass
        await asyncio.sleep(1)
        with tracer.start_as_current_span("two"):
            pass

    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(name="task").defer(work)
    spans = by_name(exporter)
    task = spans["task"].context.span_id
    assert parent_of(spans["one"]) == parent_of(spans["two"]) == task
    assert parent_of(spans["deep"]) == spans["one"].context.span_id


async def test_spans_in_a_thread_are_inside(exporter, provider, tracer):
    """WD-30, DF-10: a synchronous task sees its span as the current one in its thread."""

    def work():
        assert threading.current_thread() is not threading.main_thread()
        with tracer.start_as_current_span("in the thread"):
            pass

    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with supervisor.context() as ctx:
            handle = ctx.with_options(name="task").defer(work)
        await handle
    spans = by_name(exporter)
    assert parent_of(spans["in the thread"]) == spans["task"].context.span_id


async def test_tasks_do_not_see_each_others_spans(exporter, provider, tracer):
    """WD-31: sequential and concurrent tasks of one request are siblings."""

    async def register_more():
        defer(nothing)
        await asyncio.sleep(1)

    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with tracer.start_as_current_span("request"), supervisor.context() as ctx:
            ctx.with_options(name="first").defer(register_more)
            ctx.with_options(name="second").defer(asyncio.sleep, 1)
        await supervisor.drain()
    spans = by_name(exporter)
    request = spans["request"].context.span_id
    assert parent_of(spans["first"]) == parent_of(spans["second"]) == request
    assert parent_of(spans["nothing"]) == spans["first"].context.span_id  # registered in there
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_one_attempt_has_no_span_of_its_own(exporter, provider):
    """DF-06: attempts are child spans only where there are several."""
    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(retry=Retry(on=BoomError)).defer(nothing)
    assert list(by_name(exporter)) == ["nothing"]


async def test_attempts_are_child_spans(exporter, provider, tracer):
    """DF-06, WD-36: each attempt of several is a span that ends with its error, the last with the task's outcome."""
    attempts = 0

    async def flaky():
        nonlocal attempts
        attempts += 1
        with tracer.start_as_current_span(f"inside {attempts}"):
            await asyncio.sleep(0)
        if attempts < 3:
            raise BoomError(f"number {attempts}")

    retry = Retry(on=BoomError, wait_initial=2, wait_jitter=0)
    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(name="task", retry=retry).defer(flaky)
        await supervisor.drain()
    spans = by_name(exporter)
    task, first, second, third = (spans[name] for name in ("task", "attempt 1", "attempt 2", "attempt 3"))
    assert {parent_of(span) for span in (first, second, third)} == {task.context.span_id}
    assert [span.status.status_code for span in (first, second, third, task)] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
        StatusCode.UNSET,
    ]
    assert first.attributes["deferred.retry_delay"] == 2
    assert first.events[0].attributes["exception.message"] == "number 1"
    assert first.start_time >= task.start_time
    assert parent_of(spans["inside 2"]) == second.context.span_id
    assert parent_of(spans["inside 3"]) == third.context.span_id
    assert task.attributes["deferred.outcome"] == "succeeded"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(BoomError("no"), "failed"), (NonRetryableError("no"), "non_retryable"), (SystemExit(1), "failed")],
)
async def test_a_failure_is_on_the_span(exporter, provider, error, outcome):
    """SX-12, WD-36: a failed task's span has the error's type, its message and its stack."""

    async def fails():
        raise error

    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(name="task").defer(fails)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["deferred.outcome"] == outcome
    assert span.attributes["error.type"].endswith(type(error).__qualname__)
    assert span.status.status_code is StatusCode.ERROR
    (event,) = span.events
    assert event.name == "exception"
    assert "in fails" in event.attributes["exception.stacktrace"]


async def test_an_error_that_cannot_be_shown(exporter, provider):
    """A09: an error whose text raises is on the span by its type."""

    class HostileError(Exception):
        def __str__(self):
            raise RuntimeError("no text")

        __repr__ = __str__

    async def fails():
        raise HostileError

    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(name="task").defer(fails)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["error.type"].endswith("HostileError")
    assert span.end_time is not None


async def test_what_a_drain_ends(exporter, provider):
    """DF-08: cancelled and abandoned tasks end their spans with that outcome; one that never started has none."""

    async def stubborn():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if asyncio.get_running_loop().time() > 30:
                    raise

    async with Supervisor(hooks=[TracingHook(provider)], max_running=2, drain_timeout=5, cancel_grace=1) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(name="hangs").defer(asyncio.sleep, 100)
            ctx.with_options(name="stubborn").defer(stubborn)
            ctx.with_options(name="never").defer(nothing)
        await supervisor.drain()
    spans = by_name(exporter)
    assert set(spans) == {"hangs", "stubborn"}
    assert spans["hangs"].attributes["deferred.outcome"] == "cancelled_by_drain"
    assert spans["stubborn"].attributes["deferred.outcome"] == "abandoned"


async def test_a_sequential_step_is_inside_the_request_and_leaves_it(exporter, provider, tracer):
    """WD-31: after a sequential step the handler's span is the current one again."""

    @sequential
    async def handler(ctx):
        with tracer.start_as_current_span("request") as request:
            await ctx.with_options(name="step").run(nothing)
            assert trace.get_current_span() is request

    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with supervisor.context() as ctx:
            await handler(ctx)
    spans = by_name(exporter)
    assert parent_of(spans["step"]) == spans["request"].context.span_id


async def test_a_timed_step_is_a_span(exporter, provider, tracer):
    """WD-36: `ctx.step` is a span with the times and the error that it had."""
    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with (
            pytest.raises(BoomError),
            tracer.start_as_current_span("request"),
            supervisor.context() as ctx,
            ctx.step("INSERT runners"),
        ):
            await asyncio.sleep(4)
            raise BoomError
    step = by_name(exporter)["INSERT runners"]
    assert (step.end_time - step.start_time) / 1e9 == pytest.approx(4)
    assert step.status.status_code is StatusCode.ERROR
    assert parent_of(step) == by_name(exporter)["request"].context.span_id


async def test_work_that_takes_long_can_be_a_trace_of_its_own(exporter, provider, tracer):
    """A62: with `relation="link"` a task starts a new trace that links to its request."""
    async with Supervisor(hooks=[TracingHook(provider, relation="link")]) as supervisor:
        with tracer.start_as_current_span("request"), supervisor.context() as ctx:
            ctx.with_options(name="report").defer(nothing)
        with supervisor.context() as ctx:
            ctx.with_options(name="alone").defer(nothing)
        await supervisor.drain()
    spans = by_name(exporter)
    report = spans["report"]
    assert report.parent is None
    assert report.context.trace_id != spans["request"].context.trace_id
    assert report.links[0].context.span_id == spans["request"].context.span_id
    assert not spans["alone"].links


async def test_log_lines_of_the_work_know_its_span(provider):
    """WD-39: where the work writes a log line, its span is the current one."""
    seen = []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append((record.getMessage(), trace.get_current_span().name))

    logger = logging.getLogger("work")
    handler = Handler()
    logger.addHandler(handler)

    async def work():
        logger.warning("here")

    try:
        async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
            with supervisor.context() as ctx:
                ctx.with_options(name="task").defer(work)
            await supervisor.drain()
    finally:
        logger.removeHandler(handler)
    assert seen == [("here", "task")]


async def test_a_tracer_that_fails_changes_nothing(caplog):
    """DF-07, A28: a tracer that raises at every call is logged; the task succeeds all the same."""
    done = []

    class Broken(trace.TracerProvider):
        def get_tracer(self, *_args, **_kwargs):
            class BrokenTracer:
                def start_span(self, *_args, **_kwargs):
                    raise BoomError("no exporter")

            return BrokenTracer()

    async def work():
        done.append(True)

    async with Supervisor(hooks=[TracingHook(Broken())]) as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(work)
    assert done == [True]
    assert supervisor.stats().succeeded == 1
    assert "it is contained" in caplog.text


def test_outside_a_request_nothing_is_traced(provider, exporter):
    """WD-37: a hook that hears of no task makes no span."""
    TracingHook(provider)
    assert exporter.get_finished_spans() == ()


class Breaks(SpanProcessor):
    """A processor of the application's that fails at the end of some spans. Lives as long as a test."""

    def __init__(self, *names):
        self.names = names

    def on_end(self, span):
        """Fail, for these."""
        if span.name in self.names:
            raise BoomError


@pytest.mark.parametrize("broken", ["attempt 2", "mail"])
async def test_a_span_that_cannot_end_keeps_no_other_open(exporter, provider, caplog, broken):
    """DF-07: the work goes on, the other spans end, and the handler's context is as it was."""
    provider.add_span_processor(Breaks(broken))
    left = [BoomError()]
    after = []

    async def work():
        if left:
            raise left.pop()

    @sequential
    async def handler():
        retry = Retry(on=BoomError, attempts=2, wait_jitter=0)
        await current_context().with_options(name="mail", retry=retry).run(work)
        after.append(trace.get_current_span())

    hook = TracingHook(provider)
    async with Supervisor(hooks=[hook]) as supervisor:
        await supervisor.wrap(handler)()
    assert set(by_name(exporter)) == {"attempt 1", "attempt 2", "mail"}
    assert after == [trace.INVALID_SPAN]
    assert hook._open == {}
    assert "it is contained" in caplog.text


@pytest.mark.parametrize("traceparent", ["", "garbage", "00-0-0-00", f"ff-{'1' * 32}-{'2' * 16}-01", "\udcff" * 9])
def test_what_travelled_may_be_garbage(provider, traceparent):
    """A trace that cannot be read is none, and the delivery has one of its own."""
    found = _CARRIED.extract({"traceparent": traceparent, "tracestate": "=,;"}, Context())
    assert not trace.get_current_span(found).get_span_context().is_valid


async def test_without_a_provider_nothing_is_traced():
    """DF-07: with the API alone, or with a sampler that wants none, the work runs as it would without the hook."""
    ran = []

    async def work(hook):
        ran.append(hook)

    for hook in (TracingHook(), TracingHook(TracerProvider(sampler=ALWAYS_OFF))):
        async with Supervisor(hooks=[hook, MetricsHook()]) as supervisor:
            with supervisor.context() as ctx:
                ctx.defer(work, hook)
        assert hook._open == {}
    assert len(ran) == 2
