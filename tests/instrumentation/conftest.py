"""What the tests of spans share: a provider of the SDK's, and what keeps the spans that have ended."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@pytest.fixture
def exporter():
    """Give what keeps the spans that have ended."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    """Give the SDK's provider of the application."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider
