"""Prometheus: every measure of deferred work as a metric of a registry.

Names and labels are those of `deferred.instrumentation._measures` in Prometheus' spelling:
``deferred.task.queue_time`` is ``deferred_task_queue_time_seconds``, and a counter's name ends in
``_total``. Needs the extra ``prometheus``.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from deferred.instrumentation._measures import BUCKETS, Kind, Measured, Recorder

__all__ = ["PrometheusHook"]

_TASK = ("deferred.task.name", "deferred.execution")
_LABELS = {
    Measured.DURATION: (*_TASK, "deferred.outcome", "error.type"),
    Measured.DRAIN_DURATION: (),
}


class PrometheusHook(Recorder):
    """A hook that keeps Prometheus metrics: ``Supervisor(hooks=[PrometheusHook()])``.

    One for all supervisors of a process, since a registry takes a metric once.

    Args:
        registry: Where the metrics are registered; the client library's default when None.

    Raises:
        ValueError: The registry has these metrics already.

    Example:
        >>> import asyncio
        >>> from prometheus_client import CollectorRegistry
        >>> from deferred import Supervisor
        >>> registry = CollectorRegistry()
        >>> async def main():
        ...     async with Supervisor(hooks=[PrometheusHook(registry)]) as supervisor:
        ...         with supervisor.context() as ctx:
        ...             ctx.with_options(name="nap").defer(asyncio.sleep, 0)
        >>> asyncio.run(main())
        >>> labels = {"task_name": "nap", "execution": "deferred", "outcome": "succeeded", "error_type": ""}
        >>> registry.get_sample_value("deferred_task_duration_seconds_count", labels)
        1.0
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__()
        target = REGISTRY if registry is None else registry
        self._metrics = {measured: _metric(measured, target) for measured in Measured}

    def record(self, measured: Measured, value: float, labels: dict[str, str]) -> None:
        """Store one value."""
        metric = self._metrics[measured]
        wanted = _LABELS.get(measured, _TASK)
        child = metric.labels(*(labels.get(name, "") for name in wanted)) if wanted else metric
        if measured.value.kind is Kind.HISTOGRAM:
            child.observe(value)
        else:
            child.inc(value)


def _metric(measured: Measured, registry: CollectorRegistry) -> Any:  # of its three classes
    name, kind, _, description = measured.value
    names = [_spell(label) for label in _LABELS.get(measured, _TASK)]
    spelled = name.replace(".", "_")
    if kind is Kind.HISTOGRAM:
        return Histogram(f"{spelled}_seconds", description, names, registry=registry, buckets=BUCKETS)
    if kind is Kind.COUNTER:
        return Counter(spelled, description, names, registry=registry)
    # Of several processes that share a folder: what those count that live.
    return Gauge(spelled, description, names, registry=registry, multiprocess_mode="livesum")


def _spell(label: str) -> str:
    return label.removeprefix("deferred.").replace(".", "_")
