"""Spans of the application's own, beside those of deferred work and of the server."""

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deferred import Supervisor, defer
from deferred.instrumentation.opentelemetry import TracingHook
from deferred.integrations.asgi import DeferredMiddleware
from tests.instrumentation.test_export import answer, request

pytestmark = pytest.mark.looptime


def parent_of(span):
    """Return the id of a span's parent."""
    return span.parent.span_id if span.parent is not None else None


async def test_a_span_started_by_hand(exporter, provider):
    """WD-32, WD-33: In a task it takes the task's span as its parent, and does not become the current one."""
    tracer = provider.get_tracer("app")
    seen = []

    async def work():
        by_hand = tracer.start_span("by hand")
        seen.append(trace.get_current_span().name)
        await asyncio.sleep(1)
        with tracer.start_as_current_span("beside"):
            pass
        by_hand.end()

    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(name="task").defer(work)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert seen == ["task"]
    task = spans["task"].context.span_id
    assert [parent_of(spans[name]) for name in ("by hand", "beside")] == [task, task]


async def test_work_that_never_settles_holds_nothing_back(exporter, provider):
    """WD-34: The request's span is exported when the response is out, whatever the work does then."""

    async def app(_scope, _receive, send):
        defer(asyncio.Event().wait)
        await answer(send)

    async with Supervisor(hooks=[TracingHook(provider)], drain_timeout=1, cancel_grace=1) as supervisor:
        await request(OpenTelemetryMiddleware(DeferredMiddleware(app, supervisor), tracer_provider=provider))
        assert "POST /api/register" in {span.name for span in exporter.get_finished_spans()}
        assert supervisor.stats().running + supervisor.stats().pending == 1


async def test_the_span_of_a_streamed_body(exporter, provider):
    """WD-35, SX-15: The request's span lasts until the last part is out; what was deferred begins after that."""

    async def app(_scope, _receive, send):
        with provider.get_tracer("app").start_as_current_span("body"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for number in range(3):
                await asyncio.sleep(1)
                if number == 1:
                    defer(asyncio.sleep, 1)
                await send({"type": "http.response.body", "body": b"part", "more_body": number < 2})

    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        await request(OpenTelemetryMiddleware(DeferredMiddleware(app, supervisor), tracer_provider=provider))
        await supervisor.drain()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    root, sleep = spans["POST /api/register"], spans["sleep"]
    sent = [span.start_time for span in exporter.get_finished_spans() if span.name.endswith("http send")]
    assert len(sent) == 4
    assert max(sent) <= root.end_time <= sleep.start_time
    assert parent_of(sleep) == spans["body"].context.span_id
    assert {span.context.trace_id for span in spans.values()} == {root.context.trace_id}


async def test_an_export_that_never_comes_back(provider):
    """DF-07, A28: An exporter that raises does not touch the work."""

    class Broken(InMemorySpanExporter):
        def export(self, spans):
            raise OSError("no collector")

    provider.add_span_processor(SimpleSpanProcessor(Broken()))
    done = []

    async def work():
        done.append(True)

    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(work)
    assert done == [True]
    assert supervisor.stats().succeeded == 1
