"""The hook behind the inspector: what happened lately, within bounds.

Rules of this file: what happens for every task is short, and what is dear (a label, an id, a
site, a line of source) waits until somebody looks; nothing of the user's is kept alive once its
task has ended, but arguments that are plain values; the oldest makes room.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from deferred._events import (
    ContextClosed,
    ContextOpened,
    ContextSettled,
    DrainFinished,
    DrainStarted,
    Event,
    Execution,
    Outcome,
    StepFinished,
    TaskAbandoned,
    TaskCancelled,
    TaskDeferred,
    TaskDiscarded,
    TaskEnqueued,
    TaskEvent,
    TaskFailed,
    TaskRejected,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
)
from deferred._options import Hook
from deferred._supervisor import Supervisor
from deferred._task import TaskHandle
from deferred.inspector._arguments import keep_arguments
from deferred.inspector._errors import capture
from deferred.inspector._logs import LogLines
from deferred.inspector._memory import Memory
from deferred.inspector._records import (
    LONG,
    MOST_STEPS,
    MOST_TASKS,
    Attempt,
    Ended,
    Step,
    Trace,
    weight,
)
from deferred.inspector._redact import shorten
from deferred.inspector._stored import fill, postpone

__all__ = ["Recorder"]

_OK = Outcome.SUCCEEDED


def _size_of(failure: Attempt) -> int:
    return failure.error.size


def _told(*events: type[Event]) -> Callable[[Any], Any]:
    """Say which events a method is told; read by the supervisor's hooks."""

    def mark(method: Any) -> Any:
        method.events = events
        return method

    return mark


class Recorder(Memory):
    """What happened lately in one supervisor. Lives as long as its inspector.

    Args:
        supervisor: Whose work it is.
        count: How many units of work are kept.
        size: About how many bytes they may take.
        age: Seconds after which they are forgotten.
        arguments: Whether arguments of tasks that have ended are kept.
        ignore: How the paths, or the labels, begin of requests that are shown only if they leave work behind.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        count: int,
        size: int,
        age: float,
        arguments: bool,
        ignore: tuple[str, ...] = (),
    ) -> None:
        super().__init__(supervisor, count=count, size=size, age=age)
        self._ignored = ignore
        self.drain: tuple[DrainStarted, DrainFinished | None] | None = None
        self._keeps = arguments
        self._detached = supervisor._launcher.detached
        self._failures: dict[TaskHandle[Any], list[Attempt]] = {}
        self._watching = threading.Lock()
        self._logs = LogLines(self)
        self._hooks: tuple[Hook, ...] = (
            self._opened,
            self._closed,
            self._settled,
            self._step,
            self._succeeded,
            self._failed,
            self._unhappy,
            self._retrying,
            self._rejected,
            self._enqueued,
            self._draining,
        )
        for hook in self._hooks:
            supervisor.add_hook(hook)

    def close(self) -> None:
        """Listen no more; what is recorded stays."""
        for hook in self._hooks:
            self.supervisor.remove_hook(hook)
        self._logs.uninstall()

    # -- what happens ------------------------------------------------------------------------

    @_told(ContextOpened)
    def _opened(self, event: ContextOpened) -> None:
        if event.at >= self.counts.next:
            self._turn(event.at)
        if self._ignored and self._is_ignored(event.context.label):
            return  # it begins with its first task, if it has one
        self.counts.requests += 1
        self._last = number = self._last + 1
        unit: Any = event.context
        self._live[unit] = trace = Trace(unit, number, event.at)
        if self._watchers:
            self._note(trace)

    def _is_ignored(self, label: str) -> bool:
        return label.startswith(self._ignored) or label.partition(" ")[2].startswith(self._ignored)

    @_told(ContextClosed)
    def _closed(self, event: ContextClosed) -> None:
        trace = self._live.get(event.context)
        if trace is not None:
            trace.closed = event.at
            if event.error is not None:
                trace.error = capture(event.error)
                trace.size += trace.error.size
            if self._watchers:
                self._note(trace)

    @_told(ContextSettled)
    def _settled(self, event: ContextSettled) -> None:
        unit: Any = event.context
        trace = self._live.get(unit)
        if trace is None:
            self.stored.units.pop(unit, None)
            return
        if self._detached and self._is_loose(unit):
            trace.loose = True
        else:
            self._settle(trace, unit, event.at)

    def _is_loose(self, unit: Any, besides: object = None) -> bool:
        """Say whether tasks of fire-and-forget routes, which nobody waits for, have not ended."""
        return any(task._unit is unit and task is not besides for task in self._detached)

    def _settle(self, trace: Trace, unit: Any, at: float) -> None:
        del self._live[unit]
        trace.settle(unit, at)
        self.change = trace.change = self.change + 1
        self._done.append(trace)
        self.size += trace.weight
        if len(self._done) > self._count or self.size > self._room or len(self._live) > self._count:
            self._make_room()

    @_told(StepFinished)
    def _step(self, event: StepFinished) -> None:
        trace = self._of(event.context, event.started)
        before = trace.weight
        error = None if event.error is None else capture(event.error)
        steps = trace.steps = trace.steps or []
        if len(steps) < MOST_STEPS:
            steps.append(Step(event.name[:LONG], event.started, event.at, error))
            trace.size += 150 + (error.size if error is not None else 0)
        else:
            trace.omitted += 1
        self._grown(trace, before)

    @_told(TaskSucceeded)
    def _succeeded(self, event: TaskSucceeded) -> None:
        task: Any = event.task
        at = event.at
        if at >= self.counts.next:
            self._turn(at)
        if self._jobs and self._delivered(task, at, _OK):
            return
        trace = self._live.get(task._unit)
        if trace is None:
            self._end_as(task, at, _OK, None)
            return
        work = task._work
        named = task._name or task._options.name
        ended = Ended(
            shorten(named, LONG) if named else work.__qualname__ if type(work) is FunctionType else task.name,
            task._code,
            task._instruction,
            task._created,
            task._started,
            at,
            _OK,
            task._attempts,
            task._execution,
            task._id,
        )
        if task._attempts > 1 or task._args or task._kwargs:
            self._complete(ended, task)
            self._weighed(trace, ended)
        known = trace.ended
        if known is None:
            trace.ended = [ended]
        else:
            known.append(ended)
            if len(known) > MOST_TASKS:
                trace.thin_out()
        if self._watchers:
            self._inline.discard(task)
            self._note(trace)
        if trace.loose and not self._is_loose(task._unit, task):
            self._settle(trace, task._unit, at)

    @_told(TaskFailed)
    def _failed(self, event: TaskFailed) -> None:
        self._end(event, event.outcome)

    @_told(TaskCancelled, TaskDiscarded, TaskAbandoned)
    def _unhappy(self, event: TaskCancelled | TaskDiscarded | TaskAbandoned) -> None:
        self._end(event, Outcome.ABANDONED if isinstance(event, TaskAbandoned) else event.outcome)

    def _end(self, event: TaskEvent, outcome: Outcome) -> None:
        if event.at >= self.counts.next:
            self._turn(event.at)
        self._end_as(event.task, event.at, outcome, None)

    def _end_as(self, task: Any, at: float, outcome: Outcome, failures: list[Attempt] | None) -> None:
        if self._jobs and self._delivered(task, at, outcome):
            return
        trace = self._of(task._unit, task._created)
        before = trace.weight
        ended = Ended(
            shorten(task.name, LONG),
            task._code,
            task._instruction,
            task._created,
            task._started,
            at,
            outcome,
            task._attempts,
            task._execution,
            task._id,
        )
        if task._error is not None and outcome is not _OK:
            ended.error = capture(task._error)
        self._complete(ended, task)
        ended.failures = failures or ended.failures
        trace.add(ended)
        trace.size += weight(ended)
        self._grown(trace, before)
        self._inline.discard(task)
        if trace.loose and not self._is_loose(task._unit, task):
            self._settle(trace, task._unit, at)

    def _complete(self, ended: Ended, task: Any) -> None:
        """Add what most tasks do not have."""
        if task._attempts > 1:
            ended.failures = self._failures.pop(task, None)
        if (task._args or task._kwargs) and self._keeps:
            ended.arguments = keep_arguments(task)

    @_told(TaskRetrying)
    def _retrying(self, event: TaskRetrying) -> None:
        task: Any = event.task
        failure = Attempt(task._started, event.at, capture(event.error), event.delay)
        if task._options.redelivery is not None:  # and so it has ended, for this time
            self._postponed(task, event.at, failure)
            return
        trace = self._of(task._unit, task._created)
        failures = self._failures.setdefault(task, [])
        failures.append(failure)
        while len(failures) > 2 and (len(failures) > MOST_STEPS or sum(map(_size_of, failures)) > self._share):
            del failures[len(failures) // 2]
        self._note(trace)

    @_told(TaskRejected)
    def _rejected(self, event: TaskRejected) -> None:
        trace = self._of(event.context, event.at)
        before = trace.weight
        name, outcome, execution = shorten(event.name, LONG), Outcome.DISCARDED_BY_OVERFLOW, event.context.execution
        ended = Ended(name, None, 0, event.at, 0.0, event.at, outcome, 0, execution, None)
        ended.error, ended.word = capture(event.error), "rejected"
        trace.add(ended)
        trace.size += weight(ended)
        self._grown(trace, before)

    @_told(TaskEnqueued)
    def _enqueued(self, event: TaskEnqueued) -> None:
        trace = self._of(event.context, event.at)
        before = trace.weight
        ended = Ended(event.name, None, 0, event.at, 0.0, event.at, _OK, 0, Execution.DURABLE, event.id)
        ended.word = "enqueued"
        trace.add(ended)
        self.stored.note(trace, ended)
        self._grown(trace, before)

    # -- stored work -----------------------------------------------------------------------------

    def _delivered(self, task: Any, at: float, outcome: Outcome) -> bool:
        """Write the end of a delivery into the row of its job; say whether it is known."""
        found = self._adopt(task)
        if found is None:
            return False
        trace, ended = found
        before = trace.weight
        fill(ended, task, at, outcome)
        ended.error = None if task._error is None or outcome is _OK else capture(task._error)
        if (task._args or task._kwargs) and self._keeps:
            ended.arguments = keep_arguments(task)
        self._go_on(trace, at, before)
        return True

    def _postponed(self, task: Any, at: float, failure: Attempt) -> None:
        found = self._adopt(task)
        if found is None:
            self._end_as(task, at, Outcome.POSTPONED, [failure])
            return
        trace, ended = found
        before = trace.weight
        postpone(ended, task, at, failure)
        trace.size += failure.error.size
        self._go_on(trace, at, before)

    @_told(DrainStarted, DrainFinished)
    def _draining(self, event: DrainStarted | DrainFinished) -> None:
        if isinstance(event, DrainStarted):
            self.drain = (event, None)
        elif self.drain is not None:
            self.drain = (self.drain[0], event)

    def _turn(self, at: float) -> None:
        """Do what is done once a second, at the most."""
        self._logs.install()
        self.counts.turn(at)
        self.weigh()

    # -- who looks -----------------------------------------------------------------------------

    @contextmanager
    def watched(self) -> Generator[None]:
        """Note also what has not ended yet, while somebody watches."""
        with self._watching:
            self._watchers += 1
            if self._watchers == 1:
                self.supervisor.add_hook(self._moved)
        try:
            yield
        finally:
            with self._watching:
                self._watchers -= 1
                if not self._watchers:
                    self.supervisor.remove_hook(self._moved)
                    self._inline.clear()

    @_told(TaskDeferred, TaskStarted)
    def _moved(self, event: TaskDeferred | TaskStarted) -> None:
        task: Any = event.task
        trace = self._of(task._unit, task._created)
        if task._execution is Execution.SEQUENTIAL:
            self._inline.add(task)
        self._note(trace)

    def failures(self, task: TaskHandle[Any]) -> Iterable[Attempt]:
        """Return the failed attempts of a task that has not ended."""
        return tuple(self._failures.get(task, ()))
