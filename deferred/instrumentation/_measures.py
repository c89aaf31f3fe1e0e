"""What is measured of deferred work: one list, whatever stores it.

Rules of this file: every measure is named and described here and nowhere else; durations are
in seconds; labels are the task's name, its execution, its outcome and the type of its error,
which are as many as the code has, never what a request brought along. Where names are made of
such things all the same, so many are told apart; the rest is counted together.
"""

from __future__ import annotations

import abc
import enum
from typing import NamedTuple

from deferred._events import (
    DrainFinished,
    Event,
    Outcome,
    TaskAbandoned,
    TaskCancelled,
    TaskDeferred,
    TaskDiscarded,
    TaskFailed,
    TaskRejected,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
    TaskView,
)

__all__ = ["BUCKETS", "MOST_NAMES", "OTHERS", "Kind", "Measure", "Measured", "Recorder"]

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds: a no-op takes the first, a mail the middle, a report of minutes the last."""
MOST_NAMES = 500
"""How many names of tasks, and types of errors, are told apart: each is a time series of its own, for ever."""
OTHERS = "(others)"


class Kind(enum.Enum):
    """How a measure changes."""

    COUNTER = "counter"
    UP_DOWN = "up-down counter"
    HISTOGRAM = "histogram"


class Measure(NamedTuple):
    """A measure: its name, kind, unit and description."""

    name: str
    kind: Kind
    unit: str
    description: str


class Measured(enum.Enum):
    """Every measure there is."""

    DURATION = Measure("deferred.task.duration", Kind.HISTOGRAM, "s", "From the start of a task to its end.")
    QUEUE_TIME = Measure("deferred.task.queue_time", Kind.HISTOGRAM, "s", "From the registration to the start.")
    ACTIVE = Measure("deferred.task.active", Kind.UP_DOWN, "{task}", "Tasks that run, or wait for another attempt.")
    PENDING = Measure("deferred.task.pending", Kind.UP_DOWN, "{task}", "Tasks that have not started.")
    RETRIES = Measure("deferred.task.retries", Kind.COUNTER, "{attempt}", "Failed attempts that another follows.")
    REJECTED = Measure("deferred.task.rejected", Kind.COUNTER, "{task}", "Tasks refused because a limit was reached.")
    ABANDONED = Measure("deferred.task.abandoned", Kind.COUNTER, "{task}", "Tasks that a drain has given up.")
    DRAIN_DURATION = Measure("deferred.drain.duration", Kind.HISTOGRAM, "s", "From the start of a drain to its end.")


class Recorder(abc.ABC):
    """A hook that turns events into measures. Lives as long as its supervisor.

    It counts a task only from its registration on: installed late, it shows no negative numbers.
    Stored work it counts from the start of a delivery, in the process that runs it.
    """

    events: tuple[type[Event], ...] = (
        DrainFinished,
        TaskAbandoned,
        TaskCancelled,
        TaskDeferred,
        TaskDiscarded,
        TaskFailed,
        TaskRejected,
        TaskRetrying,
        TaskStarted,
        TaskSucceeded,
    )

    def __init__(self) -> None:
        self._started: dict[TaskView, float | None] = {}  # when; None for those that have not
        self._names: set[str] = set()
        self._kinds: set[str] = set()

    @abc.abstractmethod
    def record(self, measured: Measured, value: float, labels: dict[str, str]) -> None:
        """Store one value."""

    def __call__(self, event: Event) -> None:
        """Measure what happened."""
        match event:
            case TaskDeferred(task=task):
                self._started[task] = None
                self.record(Measured.PENDING, 1, self._labels(task))
            case TaskStarted(task=task, attempt=attempt):
                self._start(task, event.at, attempt)
            case TaskRetrying(task=task):
                self._postpone(task)
            case TaskSucceeded(task=task):
                self._end(task, event.at, Outcome.SUCCEEDED)
            case TaskFailed(task=task, outcome=outcome, error=error):
                self._end(task, event.at, outcome, error)
            case TaskCancelled(task=task, outcome=outcome) | TaskDiscarded(task=task, outcome=outcome):
                self._end(task, event.at, outcome)
            case TaskAbandoned(task=task):
                self._end(task, event.at, Outcome.ABANDONED)
                self.record(Measured.ABANDONED, 1, self._labels(task))
            case TaskRejected(name=name, context=context):
                known = _one_of(self._names, name)
                labels = {"deferred.task.name": known, "deferred.execution": context.execution.value}
                self.record(Measured.REJECTED, 1, labels)
            case DrainFinished(duration=duration):
                self.record(Measured.DRAIN_DURATION, duration, {})
            case _:
                pass

    def _start(self, task: TaskView, at: float, attempt: int) -> None:
        labels = self._labels(task)
        if task.idempotency_key is not None:  # stored work: its wait is counted by the engine
            self._started[task] = at
            self.record(Measured.ACTIVE, 1, labels)
        elif attempt == 1 and task in self._started:
            self._started[task] = at
            self.record(Measured.PENDING, -1, labels)
            self.record(Measured.ACTIVE, 1, labels)
            self.record(Measured.QUEUE_TIME, max(0.0, at - task.created), labels)

    def _postpone(self, task: TaskView) -> None:
        self.record(Measured.RETRIES, 1, self._labels(task))
        if task.idempotency_key is not None and self._started.pop(task, None) is not None:
            self.record(Measured.ACTIVE, -1, self._labels(task))  # the next attempt is another delivery

    def _end(self, task: TaskView, at: float, outcome: Outcome, error: BaseException | None = None) -> None:
        if task not in self._started:
            return
        labels, started = self._labels(task), self._started.pop(task)
        if started is None:
            self.record(Measured.PENDING, -1, labels)
            return
        self.record(Measured.ACTIVE, -1, labels)
        labels = {**labels, "deferred.outcome": outcome.value}
        if error is not None:
            labels["error.type"] = _one_of(self._kinds, type(error).__qualname__)
        self.record(Measured.DURATION, max(0.0, at - started), labels)

    def _labels(self, task: TaskView) -> dict[str, str]:
        return {"deferred.task.name": _one_of(self._names, task.name), "deferred.execution": task.execution.value}


def _one_of(known: set[str], name: str) -> str:
    """Return a name that is told apart, or the one of all others once there are enough; the same every time."""
    if name in known:
        return name
    if len(known) >= MOST_NAMES:
        return OTHERS
    known.add(name)
    return name
