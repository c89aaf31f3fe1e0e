"""Measures of deferred work, in OpenTelemetry and in Prometheus: the same numbers."""

import asyncio
import os
import subprocess
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from deferred import Retry, Supervisor, TaskRejectedError
from deferred.instrumentation import _measures
from deferred.instrumentation._measures import Kind, Measured
from deferred.instrumentation.opentelemetry import MetricsHook
from deferred.instrumentation.prometheus import PrometheusHook

pytestmark = pytest.mark.looptime


class BoomError(Exception):
    """What the tasks raise."""


async def boom():
    """Fail."""
    raise BoomError


NAMES = {"task_name": "deferred.task.name", "outcome": "deferred.outcome", "error_type": "error.type"}


class OpenTelemetry:
    """Reads what the SDK has aggregated."""

    def __init__(self):
        self._reader = InMemoryMetricReader()
        self.hook = MetricsHook(MeterProvider([self._reader]))

    def read(self, measured, **labels):
        """Return a counter's value, or the count and the sum of a histogram."""
        wanted = {
            f"deferred.{name.replace('_', '.')}" if name != "error_type" else "error.type": value
            for name, value in labels.items()
        }
        data = self._reader.get_metrics_data()
        found = [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == measured.value.name
            for point in metric.data.data_points
            if all(point.attributes.get(name, "") == value for name, value in wanted.items())
        ]
        if measured.value.kind is Kind.HISTOGRAM:
            return sum(point.count for point in found), sum(point.sum for point in found)
        return sum(point.value for point in found)


class Prometheus:
    """Reads what the client library exposes."""

    def __init__(self):
        self._registry = CollectorRegistry()
        self.hook = PrometheusHook(self._registry)

    def read(self, measured, **labels):
        """Return a counter's value, or the count and the sum of a histogram."""
        base = measured.value.name.replace(".", "_")
        samples = [
            sample
            for metric in self._registry.collect()
            if metric.name in (base, base + "s", base + "_seconds")
            for sample in metric.samples
            if all(sample.labels.get(name) == value for name, value in labels.items())
        ]

        def total(end):
            return sum(sample.value for sample in samples if sample.name.endswith(end))

        if measured.value.kind is Kind.HISTOGRAM:
            return total("_count"), total("_sum")
        return total("_total") if measured.value.kind is Kind.COUNTER else sum(sample.value for sample in samples)


@pytest.fixture(params=[OpenTelemetry, Prometheus])
def meter(request):
    """Give each system's hook, with a way to read what it has stored."""
    return request.param()


async def test_what_waits_and_what_runs(meter):
    """DF-06: pending and active follow each task from its registration to its end."""
    gate = asyncio.Event()
    async with Supervisor(hooks=[meter.hook], max_running=1) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(name="first").defer(gate.wait)
            ctx.with_options(name="second").defer(gate.wait)
            assert meter.read(Measured.PENDING) == 2
        await asyncio.sleep(1)
        assert meter.read(Measured.PENDING, task_name="second") == 1
        assert (meter.read(Measured.PENDING), meter.read(Measured.ACTIVE)) == (1, 1)
        await asyncio.sleep(2)
        gate.set()
        await supervisor.drain()
    assert (meter.read(Measured.PENDING), meter.read(Measured.ACTIVE)) == (0, 0)
    count, total = meter.read(Measured.QUEUE_TIME, task_name="second")
    assert (count, total) == (1, pytest.approx(3))
    count, total = meter.read(Measured.DURATION, task_name="first", outcome="succeeded")
    assert (count, total) == (1, pytest.approx(3))


async def test_failures_and_retries(meter):
    """DF-05: the duration is told by outcome and error; attempts that another follows are counted."""
    retry = Retry(on=BoomError, attempts=3, wait_initial=1, wait_jitter=0)
    async with Supervisor(hooks=[meter.hook]) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(retry=retry).defer(boom)
        await supervisor.drain()
    assert meter.read(Measured.RETRIES, task_name="boom") == 2
    count, total = meter.read(Measured.DURATION, outcome="exhausted_attempts", error_type="BoomError")
    assert (count, total) == (1, pytest.approx(3))


async def test_what_never_starts(meter):
    """S5: work that is discarded or rejected leaves the counts of what waits as they were."""
    async with Supervisor(hooks=[meter.hook], max_per_context=1) as supervisor:
        with supervisor.context() as ctx:
            ctx.status = 200
            ctx.with_options(when="error").defer(boom)
            with pytest.raises(TaskRejectedError):
                ctx.defer(boom)
        await supervisor.drain()
    assert meter.read(Measured.REJECTED, task_name="boom") == 1
    assert (meter.read(Measured.PENDING), meter.read(Measured.ACTIVE)) == (0, 0)
    assert meter.read(Measured.DURATION) == (0, 0)


async def test_drains(meter):
    """S11: a drain's duration is measured, and what it had to give up is counted."""

    async def stubborn():
        while asyncio.get_running_loop().time() < 30:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                continue

    async with Supervisor(hooks=[meter.hook], drain_timeout=5, cancel_grace=1) as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(stubborn)
    assert meter.read(Measured.ABANDONED) == 1
    count, total = meter.read(Measured.DRAIN_DURATION)
    assert (count, total) == (1, pytest.approx(6))
    assert meter.read(Measured.DURATION, outcome="abandoned")[0] == 1


async def test_names_without_end_are_counted_together(meter, monkeypatch):
    """E20: names that are made of what a request brought along do not become a time series each, and add up."""
    monkeypatch.setattr(_measures, "MOST_NAMES", 3)
    kinds = [type(f"Error{number}", (Exception,), {}) for number in range(6)]

    async def fail(kind):
        raise kind

    async with Supervisor(hooks=[meter.hook]) as supervisor:
        for number in range(6):
            with supervisor.context() as ctx:
                ctx.with_options(name=f"mail {number}").defer(fail, kinds[number])
            await supervisor.drain()
    labels = {"execution": "deferred", "outcome": "failed"}
    assert meter.read(Measured.DURATION, **labels, task_name="mail 2", error_type="Error2")[0] == 1
    assert meter.read(Measured.DURATION, **labels, task_name="(others)", error_type="(others)")[0] == 3
    assert meter.read(Measured.PENDING, task_name="(others)") == 0
    assert meter.read(Measured.ACTIVE, task_name="(others)") == 0


async def test_installed_late_it_shows_no_negative_numbers(meter):
    """S16: a hook that is added while tasks wait and run counts only those that come after it."""
    gate = asyncio.Event()
    async with Supervisor() as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(gate.wait)
        await asyncio.sleep(0)
        supervisor.add_hook(meter.hook)
        gate.set()
        await supervisor.drain()
    assert (meter.read(Measured.PENDING), meter.read(Measured.ACTIVE)) == (0, 0)


def test_prometheus_exposes_them_by_their_names():
    """Every measure is in the exposition under its Prometheus name, with its help."""
    registry = CollectorRegistry()
    PrometheusHook(registry)
    text = generate_latest(registry).decode()
    for name in (
        "deferred_task_duration_seconds",
        "deferred_task_queue_time_seconds",
        "deferred_task_active",
        "deferred_task_pending",
        "deferred_task_retries_total",
        "deferred_task_rejected_total",
        "deferred_task_abandoned_total",
        "deferred_drain_duration_seconds",
    ):
        assert f"# HELP {name} " in text


def test_worker_processes_that_share_a_folder_are_summed(tmp_path):
    """Prometheus: of gauges the processes that live count, without a time series for each that there ever was."""
    work = """
import asyncio, os, sys
from deferred import Supervisor
from deferred.instrumentation.prometheus import PrometheusHook

async def main():
    async with Supervisor(hooks=[PrometheusHook()]) as supervisor:
        with supervisor.context() as ctx:
            ctx.with_options(name="nap").defer(asyncio.sleep, 60)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        os._exit(0)

asyncio.run(main())
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", work], env=environment, check=True, timeout=60)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))
    labels = {"task_name": "nap", "execution": "deferred"}
    assert registry.get_sample_value("deferred_task_active", labels) == 2
