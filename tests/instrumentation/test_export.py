"""What leaves the process: OTLP to a collector, and the JSON that Fiberplane Studio shows."""

import json
import logging
import math
import re
import threading

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import Link, SpanKind, StatusCode

from deferred import Retry, Supervisor, current_context, defer
from deferred.instrumentation.opentelemetry import TracingHook
from deferred.instrumentation.studio import StudioExporter, StudioLogHandler
from deferred.integrations.asgi import DeferredMiddleware
from tests.instrumentation.collector import collecting

SCOPE = {
    "type": "http",
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/api/register",
    "query_string": b"",
    "server": ("127.0.0.1", 8000),
    "client": ("127.0.0.1", 4000),
    "headers": [(b"host", b"localhost:8000"), (b"authorization", b"Bearer geheim")],
}


class BoomError(Exception):
    """What the tasks raise."""


async def request(app, scope=SCOPE):
    """Send one request through an ASGI app."""

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        pass

    await app(dict(scope), receive, send)


async def answer(send):
    """Send a plain 201."""
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def traced(provider, app):
    """Serve one request of an app behind the ASGI instrumentation and our middleware; drain and flush."""
    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        inner = DeferredMiddleware(app, supervisor)
        await request(OpenTelemetryMiddleware(inner, tracer_provider=provider))
        await supervisor.drain()
    provider.shutdown()


async def mail():
    """Be a deferred task that logs."""
    logging.getLogger("tests.mail").warning("sending to %s", "a runner")


async def register(scope, receive, send):
    """Be the app: a step, a deferred task, an answer."""
    with current_context().step("INSERT runners"):
        defer(mail)
    await answer(send)


def spans_of(body):
    """Return the spans in a batch of Studio's, by their names; each is a dict as it was sent."""
    (resource,) = json.loads(body)["resourceSpans"]
    (scope,) = resource["scopeSpans"]
    return {span["name"]: span for span in scope["spans"]}


def values_of(span):
    """Return a span's attributes as a plain dict."""
    return {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}


# -- plain OTLP -----------------------------------------------------------------------------


async def test_one_trace_per_request_in_a_collector():
    """SX-02, SX-15: a collector gets one trace of the request, its step and what it deferred, under our own scope."""
    with collecting() as (url, told):
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
        await traced(provider, register)
    found = {}
    for message in told:
        assert message.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(message.body).resource_spans:
            for scope in resource.scope_spans:
                found.update({span.name: (scope.scope.name, span) for span in scope.spans})
    root = found["POST /api/register"][1]
    scope, task = found["mail"]
    assert scope == found["INSERT runners"][0] == "deferred"
    assert {span.trace_id for _, span in found.values()} == {root.trace_id}
    assert task.parent_span_id == root.span_id
    assert task.kind == ExportTraceServiceRequest().resource_spans.add().scope_spans.add().spans.add(kind=1).kind
    # The request span ends with the request, however long its work goes on.
    assert task.start_time_unix_nano >= root.end_time_unix_nano


async def test_nothing_is_written_to_an_ended_span(caplog):
    """SX-15: the SDK warns of every call on an ended span; deferred work causes none."""
    provider = TracerProvider()

    async def fails():
        raise BoomError

    async def app(scope, receive, send):
        current_context().with_options(retry=Retry(on=BoomError, attempts=2, wait_initial=0)).defer(fails)
        await answer(send)

    await traced(provider, app)
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


# -- Fiberplane Studio ----------------------------------------------------------------------


@pytest.fixture
def studio():
    """Give a Studio's URL and what it is told."""
    with collecting() as (url, told):
        yield f"{url}/v1/traces", told


def provider_for(endpoint, **resource):
    """Return a provider that exports to a Studio."""
    provider = TracerProvider(resource=Resource(resource) if resource else Resource({}))
    exporter = StudioExporter(endpoint, timeout=60)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=600_000))  # all of it at the end
    return provider


async def test_studio_gets_json_under_a_request(studio):
    """SX-01, SX-02, SX-03, SX-08, SX-09, SX-15: the whole shape of a request and its deferred work."""
    endpoint, told = studio
    await traced(provider_for(endpoint, **{"service.name": "marathon"}), register)
    (message,) = told
    assert (message.path, message.content_type) == ("/v1/traces", "application/json")
    (resource,) = json.loads(message.body)["resourceSpans"]
    assert resource["scopeSpans"][0]["scope"] == {"name": "fpx-tracer"}
    assert resource["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "marathon"}}]
    spans = spans_of(message.body)
    root, task = spans["request"], spans["mail"]
    assert (root["kind"], task["kind"]) == (2, 1)
    assert "parentSpanId" not in root
    assert task["parentSpanId"] == root["spanId"]
    assert task["traceId"] == root["traceId"]
    for span in spans.values():
        assert re.fullmatch("[0-9a-f]{32}", span["traceId"])
        assert re.fullmatch("[0-9a-f]{16}", span["spanId"])
    values = values_of(root)
    assert values["http.request.method"] == "POST"
    assert values["http.response.status_code"] == 201
    assert values["url.full"].endswith("/api/register")
    assert values["fpx.http.request.pathname"] == "/api/register"


async def test_lists_are_always_there(studio):
    """SX-05, SX-07: events, links and attributes are lists though empty; an empty resource is left out."""
    endpoint, told = studio
    await traced(provider_for(endpoint), register)
    (resource,) = json.loads(told[0].body)["resourceSpans"]
    assert "resource" not in resource
    for span in spans_of(told[0].body).values():
        assert all(isinstance(span[part], list) for part in ("events", "links", "attributes"))
        assert all(isinstance(event["attributes"], list) for event in span["events"])


def send_one(endpoint, **options):
    """Send one span with these options of `start_span`; return it as it was sent."""
    provider = provider_for(endpoint)
    provider.get_tracer("app").start_span("one", **options).end()
    provider.shutdown()


def test_no_boolean_and_no_array_leaves(studio):
    """SX-04: what Studio loses a batch over is sent as text, numbers as numbers."""
    endpoint, told = studio
    attributes = {"flag": True, "list": ["a", "b"], "flags": [True, False], "count": 3, "share": 0.5, "text": "t"}
    send_one(endpoint, attributes=attributes)
    sent = {item["key"]: item["value"] for item in spans_of(told[0].body)["one"]["attributes"]}
    assert sent == {
        "flag": {"stringValue": "true"},
        "list": {"stringValue": '["a","b"]'},
        "flags": {"stringValue": "[true,false]"},
        "count": {"intValue": 3},
        "share": {"doubleValue": 0.5},
        "text": {"stringValue": "t"},
    }


def test_what_json_cannot_say_is_sent_as_text(studio):
    """SX-04, SX-16: no null, no number that a reader rounds, and half a character is shown as what it is."""
    endpoint, told = studio
    attributes = {"nan": math.nan, "endless": -math.inf, "long": 2**60, "half": "f\udcff", "halves": ["f\udcff", "g"]}
    provider = provider_for(endpoint)
    span = provider.get_tracer("app").start_span("one\udcff", attributes=attributes)
    span.add_event("said\udcff", {"text": "\udcff"})
    span.set_status(StatusCode.ERROR, "why\udcff")
    span.end()
    provider.shutdown()
    assert values_of(spans_of(told[0].body)["one\\udcff"]) == {
        "nan": "nan",
        "endless": "-inf",
        "long": str(2**60),
        "half": "f\\udcff",
        "halves": '["f\\\\udcff","g"]',
    }


class Unspeakable:
    """What cannot be shown."""

    def __repr__(self):
        """Fail."""
        raise BoomError


@pytest.mark.parametrize("arguments", [("%d", "one"), ("%s %s", 1), ("%s", Unspeakable())])
def test_a_line_that_cannot_be_written_breaks_nothing(monkeypatch, arguments):
    """DF-07, A09: whoever logs is not told of it; the logging module says what failed, as for every handler."""
    failed = []
    handler = StudioLogHandler()
    monkeypatch.setattr(handler, "handleError", failed.append)
    logger = logging.getLogger("tests.unspeakable")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(handler)
    try:
        with TracerProvider().get_tracer("app").start_as_current_span("one") as span:
            logger.warning(*arguments)
            assert span.events == ()
    finally:
        logger.removeHandler(handler)
    assert [record.msg for record in failed] == [arguments[0]]


def test_links_carry_a_trace_state(studio):
    """SX-06: a link says its trace state, though it is empty."""
    endpoint, told = studio
    other = TracerProvider().get_tracer("app").start_span("other").get_span_context()
    send_one(endpoint, links=[Link(other)])
    (link,) = spans_of(told[0].body)["one"]["links"]
    assert link["traceState"] == ""
    assert link["spanId"] == trace.format_span_id(other.span_id)


@pytest.mark.parametrize("kind", list(SpanKind))
def test_kinds_follow_otlp(studio, kind):
    """SX-09: INTERNAL is 1, SERVER 2, CLIENT 3, PRODUCER 4, CONSUMER 5."""
    endpoint, told = studio
    send_one(endpoint, kind=kind)
    order = ["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
    (span,) = spans_of(told[0].body).values()
    assert span["kind"] == order.index(kind.name) + 1


async def test_log_lines_become_events(studio):
    """SX-11: a line that the work logs is an event of its span, with message, level and arguments."""
    endpoint, told = studio
    logger, handler = logging.getLogger("tests.mail"), StudioLogHandler()
    logger.addHandler(handler)
    try:
        logger.warning("outside any span")
        await traced(provider_for(endpoint), register)
    finally:
        logger.removeHandler(handler)
    (event,) = spans_of(told[0].body)["mail"]["events"]
    assert event["name"] == "log"
    assert values_of(event) == {"message": "sending to a runner", "level": "warning", "arguments": "[\"'a runner'\"]"}


async def test_exceptions_become_events(studio):
    """SX-12: a failure is an event with its type, message and stack."""
    endpoint, told = studio

    async def fails():
        raise BoomError("no such user")

    async def app(scope, receive, send):
        defer(fails)
        await answer(send)

    await traced(provider_for(endpoint), app)
    values = values_of(
        next(span for name, span in spans_of(told[0].body).items() if name.endswith("fails"))["events"][0]
    )
    assert values["exception.type"].endswith("BoomError")
    assert values["exception.message"] == "no such user"
    assert "in fails" in values["exception.stacktrace"]


def test_secrets_are_redacted(studio):
    """SX-14: attributes that are named like a secret leave without their value."""
    endpoint, told = studio
    secret = ["http.request.header.authorization", "http.request.header.set_cookie", "db.password", "x.api_key"]
    send_one(endpoint, attributes={**dict.fromkeys(secret, "geheim"), "http.request.header.accept": "text/html"})
    assert b"geheim" not in told[0].body
    assert values_of(spans_of(told[0].body)["one"])["http.request.header.accept"] == "text/html"


def test_one_bad_span_takes_no_neighbour_along(studio, caplog):
    """SX-16: a span that cannot be shown is left out and named; those beside it arrive."""
    endpoint, told = studio
    tracer = TracerProvider().get_tracer("app")
    good = tracer.start_span("good")
    good.end()
    bad = ReadableSpan("bad", context=good.get_span_context())  # never started, never ended
    assert StudioExporter(endpoint, timeout=60).export([bad, good]) is SpanExportResult.SUCCESS
    assert list(spans_of(told[0].body)) == ["good"]
    assert "the span 'bad' cannot be shown" in caplog.text
    assert StudioExporter(endpoint, timeout=60).export([bad]) is SpanExportResult.SUCCESS
    assert len(told) == 1


def test_without_a_studio_there_is_one_warning(caplog):
    """SX-13: where no Studio answers, spans are dropped, once with a warning; its return is told as well."""
    caplog.set_level(logging.INFO, "deferred")
    span = TracerProvider().get_tracer("app").start_span("one")
    span.end()
    with collecting(status=500) as (url, _):
        exporter = StudioExporter(f"{url}/v1/traces", timeout=60)
        assert exporter.export([span]) is SpanExportResult.FAILURE
    assert exporter.export([span]) is SpanExportResult.FAILURE  # nobody listens there any more
    assert len(caplog.records) == 1
    with collecting() as (url, told):
        exporter._endpoint = f"{url}/v1/traces"
        assert exporter.export([span]) is SpanExportResult.SUCCESS
        assert exporter.export([span]) is SpanExportResult.SUCCESS
    assert len(told) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_an_app_does_not_wait_for_studio():
    """SX-13, DF-07: a Studio that never answers holds back no request and no task."""
    silent = threading.Event()

    class Silent(StudioExporter):
        def _post(self, body):
            silent.wait()
            return SpanExportResult.FAILURE

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Silent()))
    async with Supervisor(hooks=[TracingHook(provider)]) as supervisor:
        await request(DeferredMiddleware(register, supervisor))
        report = await supervisor.drain()
    assert report.finished == 1
    silent.set()
    provider.shutdown()


@pytest.mark.parametrize("endpoint", ["localhost:8788", "file:///etc/passwd", ""])
def test_an_endpoint_must_be_http(endpoint):
    """An endpoint that is no HTTP URL is refused by name."""
    with pytest.raises(ValueError, match="endpoint must be an http"):
        StudioExporter(endpoint)
