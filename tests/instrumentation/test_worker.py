"""A trace that goes on in another process: the request stores work, a worker runs it."""

import asyncio
import contextlib
import os
import sys

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import StatusCode

from deferred import Retry, Supervisor, current_context
from deferred.engines.memory import MemoryEngine
from deferred.instrumentation._measures import Measured
from deferred.instrumentation.opentelemetry import TracingHook
from deferred.integrations.asgi import DeferredMiddleware
from tests.instrumentation.collector import collecting
from tests.instrumentation.registry import make_provider, make_supervisor
from tests.instrumentation.test_export import answer, request
from tests.instrumentation.test_metrics import OpenTelemetry

PATIENCE = 40.0


class LaterError(Exception):
    """It fails for now."""


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    """Return the URL of an empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return asyncio.run(request.getfixturevalue("postgres_server").new_database())


def spans_of(told):
    """Return what a collector was told: for each span its service and itself."""
    found = []
    for each in tuple(told):
        for resource in ExportTraceServiceRequest.FromString(each.body).resource_spans:
            service = next(at.value.string_value for at in resource.resource.attributes if at.key == "service.name")
            found += [(service, span) for scope in resource.scope_spans for span in scope.spans]
    return found


def value(span, name):
    """Return an attribute of an exported span."""
    (found,) = (at.value for at in span.attributes if at.key == name)
    return getattr(found, found.WhichOneof("value"))


async def test_a_trace_goes_on_in_a_worker(store):
    """One trace from the request through the store into a worker process: each delivery is a span below the request.

    What the work calls in there is below its delivery, the failed one and the one that succeeded (WD-34, SX-15).
    """
    with collecting() as (collector, told):
        provider = make_provider(collector, "web")
        supervisor = make_supervisor(store, provider, serve=False)

        async def app(_scope, _receive, send):
            await current_context().enqueue("send mail", "ada@example.org")
            await answer(send)

        async with supervisor:
            await request(OpenTelemetryMiddleware(DeferredMiddleware(app, supervisor), tracer_provider=provider))
        await asyncio.to_thread(provider.shutdown)
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deferred", "worker", "tests.instrumentation.registry:worker"),
            env=os.environ | {"TEST_COLLECTOR": collector, "TEST_STORE": store},
        )
        try:
            async with asyncio.timeout(PATIENCE):
                while len([span for service, span in spans_of(told) if service == "worker"]) < 4:
                    assert worker.returncode is None
                    await asyncio.sleep(0.02)
        finally:
            worker.terminate()
            await worker.wait()
    found = spans_of(told)
    (root,) = (span for service, span in found if service == "web" and not span.parent_span_id)
    deliveries = [span for service, span in found if service == "worker" and span.name == "send mail"]
    calls = [span for service, span in found if service == "worker" and span.name == "SMTP"]
    assert {span.trace_id for _, span in found} == {root.trace_id}
    assert [span.parent_span_id for span in deliveries] == [root.span_id] * 2
    assert [span.parent_span_id for span in calls] == [span.span_id for span in deliveries]
    assert [value(span, "deferred.attempt") for span in deliveries] == [1, 2]
    assert [value(span, "deferred.outcome") for span in deliveries] == ["pending_postponed", "succeeded"]
    assert [value(span, "deferred.execution") for span in deliveries] == ["durable"] * 2
    assert deliveries[0].start_time_unix_nano >= root.start_time_unix_nano
    assert len({value(span, "deferred.task.id") for span in deliveries}) == 1


async def run_stored(hook, *, failures=0, before=None):
    """Store a call under a request's span, serve it until it has ended."""
    engine, done = MemoryEngine(), asyncio.Event()
    supervisor = Supervisor(engine=engine, hooks=[hook])
    left = [LaterError("later") for _ in range(failures)]

    @supervisor.task("mail", retry=Retry(on=LaterError, attempts=5, wait_initial=0.1, wait_jitter=0))
    async def mail():
        if left:
            raise left.pop()
        done.set()

    async with supervisor:
        with before or contextlib.nullcontext(), supervisor.context() as ctx:
            await ctx.enqueue(mail)
        await done.wait()
        while (depth := await engine.depth()).waiting or depth.running:
            await asyncio.sleep(0.01)


@pytest.mark.looptime
async def test_each_delivery_ends_its_span(exporter, provider):
    """DF-06: a delivery that failed is a span with the error and the delay; the hook keeps nothing of it."""
    hook = TracingHook(provider)
    await run_stored(hook, failures=2)
    spans = exporter.get_finished_spans()
    assert [span.attributes["deferred.outcome"] for span in spans] == ["pending_postponed"] * 2 + ["succeeded"]
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR] * 2 + [StatusCode.UNSET]
    assert [span.attributes.get("deferred.retry_delay") for span in spans] == [
        pytest.approx(0.1),
        pytest.approx(0.2),
        None,
    ]
    assert hook._open == {}


@pytest.mark.looptime
async def test_stored_work_can_be_a_trace_of_its_own(exporter, provider):
    """A62: with `relation="link"` a delivery is the root of its own trace, and links to the request that stored it."""
    span = provider.get_tracer("app").start_as_current_span("request")
    await run_stored(TracingHook(provider, relation="link"), before=span)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["mail"].parent is None
    assert spans["mail"].context.trace_id != spans["request"].context.trace_id
    assert spans["mail"].links[0].context.span_id == spans["request"].context.span_id


@pytest.mark.looptime
async def test_work_stored_outside_a_trace_begins_one(exporter, provider):
    """WD-37: without a span at hand nothing is carried, also not the one that the serving process is in."""
    nowhere = trace.use_span(trace.INVALID_SPAN)
    with provider.get_tracer("app").start_as_current_span("start of the app"):
        await run_stored(TracingHook(provider), before=nowhere)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["mail"].parent is None


@pytest.mark.looptime
async def test_a_hook_that_cannot_write_its_headers(caplog):
    """DF-07: the work is stored and done all the same, and the log says what failed."""

    class Broken(TracingHook):
        def carry(self, _headers):
            raise LaterError("no headers")

    await run_stored(Broken())
    assert "failed to write its headers" in caplog.text


@pytest.mark.looptime
async def test_stored_work_is_measured_where_it_runs():
    """A delivery counts as active while it runs; of several attempts the last one's end is the task's."""
    metrics = OpenTelemetry()
    await run_stored(metrics.hook, failures=1)
    labels = {"task_name": "mail", "execution": "durable"}
    assert metrics.read(Measured.ACTIVE, **labels) == 0
    assert metrics.read(Measured.RETRIES, **labels) == 1
    assert metrics.read(Measured.DURATION, **labels, outcome="succeeded")[0] == 1
    assert metrics.read(Measured.DURATION)[0] == 1
    assert metrics.hook._started == {}
