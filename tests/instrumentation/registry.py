"""An app whose mail is stored, for a web process and a worker of their own; both are traced."""

import contextlib
import os

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from deferred import Retry, Supervisor, current_task
from deferred.engines import Engine
from deferred.engines.postgres import PostgresEngine
from deferred.engines.sqlite import SQLiteEngine
from deferred.instrumentation.opentelemetry import TracingHook


class BusyError(Exception):
    """The mail server says later."""


def make_engine(url: str) -> Engine:
    """Return an engine that looks often."""
    if url.startswith("sqlite"):
        return SQLiteEngine(url.removeprefix("sqlite:///"), lease=60.0, poll=0.02)
    return PostgresEngine(url, lease=60.0, poll=0.2)


def make_provider(collector: str, service: str) -> TracerProvider:
    """Return a provider that sends spans from a thread of its own."""
    provider = TracerProvider(resource=Resource({"service.name": service}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(f"{collector}/v1/traces"), schedule_delay_millis=50)
    )
    return provider


def make_supervisor(url: str, provider: TracerProvider, *, serve: bool) -> Supervisor:
    """Return a supervisor that knows the task."""
    supervisor = Supervisor(engine=make_engine(url), serve=serve, hooks=[TracingHook(provider)])
    tracer = provider.get_tracer("mail")

    @supervisor.task("send mail", retry=Retry(on=BusyError, attempts=3, wait_initial=0.02, wait_jitter=0))
    async def send_mail(to: str) -> None:
        with tracer.start_as_current_span("SMTP"):
            if current_task().attempts == 1:
                raise BusyError(to)

    return supervisor


@contextlib.asynccontextmanager
async def worker():
    """Open what a worker process serves: `python -m deferred worker tests.instrumentation.registry:worker`."""
    provider = make_provider(os.environ["TEST_COLLECTOR"], "worker")
    yield make_supervisor(os.environ["TEST_STORE"], provider, serve=False)
    provider.shutdown()
