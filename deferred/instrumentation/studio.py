"""Fiberplane Studio: spans in the JSON that the article's own viewer shows.

Studio (the npm package ``@fiberplane/studio``, tried with 0.14.0) runs locally and is
particular: it takes JSON alone, loses a whole batch over one boolean or array attribute or one
missing list, and shows nothing but spans of the scope ``fpx-tracer`` under a root named
``request``. Rules of this file: every span is checked by itself, so that a bad one cannot take
its neighbours along; the app never notices whether a Studio is there. Needs
``opentelemetry-sdk``, and the OpenTelemetry ASGI instrumentation for the requests themselves.
"""

from __future__ import annotations

import contextlib
import logging
import math
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind

__all__ = ["ENDPOINT", "StudioExporter", "StudioLogHandler"]

logger: logging.Logger = logging.getLogger("deferred")

ENDPOINT = "http://localhost:8788/v1/traces"
"""Where Studio listens unless told otherwise."""

_SCOPE = "fpx-tracer"
_SECRET = ("authorization", "cookie", "api-key", "apikey", "token", "secret", "password", "real-ip", "forwarded-for")
_REDACTED = "REDACTED"
_LONGEST_INTEGER = 2**53  # beyond it a reader's numbers are others
_METHOD = ("http.request.method", "http.method")
_STATUS = ("http.response.status_code", "http.status_code")
_URL = ("url.full", "http.url")
_PATH = "fpx.http.request.pathname"


class StudioExporter(SpanExporter):
    """A span exporter for Fiberplane Studio: give it to a ``BatchSpanProcessor``.

    The processor's queue is the bounded buffer: while no Studio answers, spans are dropped, one
    warning says so, and the next span that arrives says that it is back.

    Args:
        endpoint: The URL of Studio's traces.
        timeout: Seconds that one batch may take.

    Example:
        >>> from opentelemetry.sdk.trace import TracerProvider
        >>> from opentelemetry.sdk.trace.export import BatchSpanProcessor
        >>> provider = TracerProvider()
        >>> provider.add_span_processor(BatchSpanProcessor(StudioExporter()))
        >>> provider.shutdown()
    """

    def __init__(self, endpoint: str = ENDPOINT, *, timeout: float = 2.0) -> None:
        if urlsplit(endpoint).scheme not in {"http", "https"}:
            message = f"endpoint must be an http:// or https:// URL, not {endpoint!r}"
            raise ValueError(message)
        self._endpoint = endpoint
        self._timeout = timeout
        self._reachable = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, less the spans that cannot be shown."""
        shown = [encoded for span in spans if (encoded := _encoded(span)) is not None]
        if not shown:
            return SpanExportResult.SUCCESS
        resource: dict[str, Any] = {}
        if attributes := list(_attributes(spans[0].resource.attributes)):
            resource = {"resource": {"attributes": attributes}}
        scopes = [{"scope": {"name": _SCOPE}, "spans": [msgspec.Raw(span) for span in shown]}]
        return self._post(msgspec.json.encode({"resourceSpans": [{**resource, "scopeSpans": scopes}]}))

    def _post(self, body: bytes) -> SpanExportResult:
        request = urllib.request.Request(  # noqa: S310  # its scheme was checked
            self._endpoint, body, {"content-type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310  # as above
                answer.read()
        except OSError as error:  # URLError and timeouts among them
            if self._reachable:
                self._reachable = False
                logger.warning("Fiberplane Studio does not take spans at %s: %s; said once", self._endpoint, error)
            return SpanExportResult.FAILURE
        if not self._reachable:
            self._reachable = True
            logger.info("Fiberplane Studio takes spans at %s again", self._endpoint)
        return SpanExportResult.SUCCESS


class StudioLogHandler(logging.Handler):
    """A log handler that puts each line on the span it was written in, as Studio shows it.

    A line outside any span is left alone. Put it on the loggers whose lines you want to see.

    Example:
        >>> logging.getLogger("app").addHandler(StudioLogHandler())
        >>> logging.getLogger("app").handlers.clear()
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Add the line to the current span."""
        span = trace.get_current_span()
        if not span.is_recording():
            return
        try:
            arguments = record.args if isinstance(record.args, tuple) else (record.args,)
            texts = [_text(repr(argument)) for argument in arguments if argument is not None]
            message = _text(record.getMessage())
        except Exception:  # noqa: BLE001  # arguments of anybody's: whoever writes a line is not to hear of it
            self.handleError(record)
            return
        shown = msgspec.json.encode(texts).decode()
        span.add_event("log", {"message": message, "level": record.levelname.lower(), "arguments": shown})


# -- the shape that Studio takes ------------------------------------------------------------


def _encoded(span: ReadableSpan) -> bytes | None:
    """Return one span as JSON, or None when it cannot be shown."""
    try:
        return msgspec.json.encode(_span(span))
    except Exception:
        logger.warning("the span %r cannot be shown by Fiberplane Studio and is left out", span.name, exc_info=True)
        return None


def _span(span: ReadableSpan) -> dict[str, Any]:
    context: SpanContext | None = span.get_span_context()
    if context is None or span.start_time is None or span.end_time is None:
        message = "it has no identity, or has not ended"
        raise ValueError(message)
    attributes = dict(span.attributes or {})
    root = span.kind is SpanKind.SERVER and (span.parent is None or span.parent.is_remote)
    if root:
        attributes = {**attributes, **_request(attributes)}
    return {
        "traceId": trace.format_trace_id(context.trace_id),
        "spanId": trace.format_span_id(context.span_id),
        **({"parentSpanId": trace.format_span_id(span.parent.span_id)} if span.parent and not root else {}),
        "name": "request" if root else _text(span.name),
        "kind": span.kind.value + 1,  # OTLP counts from 1
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": list(_attributes(attributes)),
        "events": [
            {
                "name": _text(event.name),
                "timeUnixNano": str(event.timestamp),
                "attributes": list(_attributes(event.attributes or {})),
            }
            for event in span.events
        ],
        "links": [
            {
                "traceId": trace.format_trace_id(link.context.trace_id),
                "spanId": trace.format_span_id(link.context.span_id),
                "traceState": link.context.trace_state.to_header(),
                "attributes": list(_attributes(link.attributes or {})),
            }
            for link in span.links
        ],
        "status": {"code": span.status.status_code.value, "message": _text(span.status.description or "")},
    }


def _request(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the four attributes by which Studio knows a request."""

    def first(names: tuple[str, ...], default: Any) -> Any:  # of an attribute
        return next((attributes[name] for name in names if name in attributes), default)

    path = str(attributes.get("url.path") or attributes.get("http.target") or "/").partition("?")[0]
    host = attributes.get("server.address") or attributes.get("http.host") or "localhost"
    url = first(_URL, f"{attributes.get('url.scheme') or attributes.get('http.scheme') or 'http'}://{host}{path}")
    status = 0
    with contextlib.suppress(ValueError, TypeError):  # whatever an instrumentation has put there
        status = int(first(_STATUS, 0))
    return {_METHOD[0]: str(first(_METHOD, "GET")), _STATUS[0]: status, _URL[0]: str(url), _PATH: path}


def _attributes(attributes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in attributes.items():
        yield {"key": _text(name), "value": _value(name, value)}


def _text(text: str) -> str:
    """Return a text that can be sent: half a character, as in file names of other encodings, as what it is."""
    return text.encode("utf-8", "backslashreplace").decode()


def _value(name: str, value: Any) -> dict[str, Any]:  # of an attribute
    """Return a value as the strings and numbers that Studio takes."""
    plain = name.lower().replace("_", "-")
    if any(secret in plain for secret in _SECRET):
        return {"stringValue": _REDACTED}
    if isinstance(value, str):
        return {"stringValue": _text(value)}
    if isinstance(value, float) and math.isfinite(value):
        return {"doubleValue": value}
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LONGEST_INTEGER:
        return {"intValue": value}
    if isinstance(value, float | int) and not isinstance(value, bool):
        return {"stringValue": repr(value)}  # JSON has no such number
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        values: Sequence[Any] = value  # pyright: ignore[reportUnknownVariableType]  # of an attribute
        value = [_text(each) if isinstance(each, str) else each for each in values]
    return {"stringValue": msgspec.json.encode(value, enc_hook=repr).decode()}
