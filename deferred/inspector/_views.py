"""What people are shown: one request and its rows, as data that is sent as JSON and drawn.

Times are seconds since the request began, on its own axis, but for `RequestView.began`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from deferred._events import Execution, TaskState
from deferred._task import TaskHandle
from deferred.inspector._errors import ErrorRecord, format_error
from deferred.inspector._recorder import Recorder
from deferred.inspector._records import Attempt, Ended, Step, Trace
from deferred.inspector._redact import redact, shorten

__all__ = ["AttemptView", "LineView", "RequestView", "RowView", "view_request", "view_requests"]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "WEBSOCKET"})
_NAME = 300
_NONE = 0.0  # what is left out is found by being the very same object
_MOST_ROWS = 200


class AttemptView(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One attempt of a task.

    Attributes:
        started: When it began.
        ended: When it ended; None while it runs.
        error: The line its traceback ends with; empty when it did not fail.
        backoff: Seconds between its end and the next attempt's beginning, as planned.
        traceback: Only in details.
    """

    started: float
    ended: float | None = None
    error: str = ""
    backoff: float = _NONE
    traceback: str = ""


class RowView(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A step or a task of a request.

    Attributes:
        kind: ``"step"`` or ``"task"``.
        name: What it is called.
        state: A `TaskState`'s value; a step is ``"succeeded"`` or ``"failed"``; ``"rejected"`` was refused, and
            ``"enqueued"`` was stored, to be run in a context of its own.
        created: When it was registered.
        ended: When it was over; None before.
        attempts: Its attempts; none when it never started.
        id: The task's id.
        outcome: An `Outcome`'s value; empty before the end.
        execution: An `Execution`'s value.
        error: The line its last traceback ends with.
        site: The ``file:line`` that registered it.
        has_arguments: Whether there are arguments to be asked for.
    """

    kind: str
    name: str
    state: str
    created: float
    ended: float | None = None
    attempts: list[AttemptView] = []
    id: str = ""
    outcome: str = ""
    execution: str = ""
    error: str = ""
    site: str = ""
    has_arguments: bool = False


class LineView(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A line of the log; without `task` it is the request's own."""

    at: float
    level: str
    logger: str
    text: str
    task: str = ""


class RequestView(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One unit of work and everything of it.

    Attributes:
        id: Its id.
        number: Counts the units of work in the order of their beginning.
        label: What it is about.
        began: When it began, in seconds since the epoch.
        age: How long ago that was.
        method: The label's first word, where that is a method of HTTP.
        route: The rest of the label.
        execution: An `Execution`'s value.
        status: Of the response.
        response: When the response was sent; None before.
        done: When the last of its work was over; None before.
        error: The line that the traceback of the handler's own error ends with.
        traceback: Only in details.
        rows: Steps and tasks in the order of their beginning.
        omitted: How many tasks are shown no longer.
        lines: Of the log; only in details.
        logged: How many there are.
    """

    id: str
    number: int
    label: str
    began: float
    age: float
    method: str = ""
    route: str = ""
    execution: str = "deferred"
    status: int | None = None
    response: float | None = None
    done: float | None = None
    error: str = ""
    traceback: str = ""
    rows: list[RowView] = []
    omitted: int = 0
    lines: list[LineView] = []
    logged: int = 0

    @property
    def span(self) -> float:
        """The length of the axis: to the end of all, or to now."""
        ends = [row.ended for row in self.rows if row.ended is not None]
        return max(self.done if self.done is not None else self.age, self.response or 0.0, *ends, 1e-6)


def view_requests(recorder: Recorder, traces: Sequence[Trace]) -> list[RequestView]:
    """Return what is shown of several units of work in a list."""
    unfinished = recorder.unfinished()
    epoch, now = recorder.epoch(), recorder.supervisor._launcher.now()
    return [_View(recorder, trace, unfinished.get(trace, ()), epoch, now).whole() for trace in traces]


def view_request(recorder: Recorder, trace: Trace) -> RequestView:
    """Return one unit of work with all details but the arguments."""
    unfinished = recorder.unfinished().get(trace, ())
    now = recorder.supervisor._launcher.now()
    return _View(recorder, trace, unfinished, recorder.epoch(), now, details=True).whole()


class _View:
    """One look at one record."""

    def __init__(
        self,
        recorder: Recorder,
        trace: Trace,
        tasks: Sequence[TaskHandle[Any]],
        epoch: float,
        now: float,
        *,
        details: bool = False,
    ) -> None:
        self.recorder, self.trace, self.tasks = recorder, trace, tasks[:_MOST_ROWS]
        self.hidden = len(tasks) - len(self.tasks)
        self.epoch, self.now, self.details = epoch, now, details

    def whole(self) -> RequestView:
        trace, unit = self.trace, self.trace.unit
        label = shorten(redact(trace.label if unit is None else unit.label), _NAME)
        first, _, rest = label.partition(" ")
        method = first if first in _METHODS else ""
        status = trace.status if unit is None else unit.status
        execution = trace.execution if unit is None else (unit.route or Execution.DEFERRED)
        lines = trace.lines or []
        return RequestView(
            id=trace.id,
            number=trace.number,
            label=label,
            began=self.epoch + trace.opened,
            age=_round(self.now - trace.opened),
            method=method,
            route=rest if method else label,
            execution=execution.value,
            status=status if isinstance(status, int) else None,
            response=self.time(trace.closed),
            done=None if self.tasks or self.goes_on() else self.time(trace.settled),
            error=trace.error.line if trace.error is not None else "",
            traceback=format_error(trace.error) if trace.error is not None and self.details else "",
            rows=self.rows(),
            omitted=trace.omitted + self.hidden,
            lines=[self.line(line) for line in lines] if self.details else [],
            logged=len(lines),
        )

    def time(self, at: float | None) -> float | None:
        return None if at is None else _round(at - self.trace.opened)

    def line(self, line: Any) -> LineView:
        at = _round(line.at - self.trace.opened)
        return LineView(at=at, level=line.level, logger=line.logger, text=line.text, task=line.task or "")

    def rows(self) -> list[RowView]:
        rows = [self.step(step) for step in self.trace.steps or ()]
        running = {task.id for task in self.tasks}  # a stored job's row is that of its delivery while it runs
        rows += [self.ended(ended) for ended in tuple(self.trace.ended or ()) if not self.is_delivered(ended, running)]
        rows += [self.unfinished(task) for task in self.tasks]
        return sorted(rows, key=lambda row: row.created)

    def goes_on(self) -> bool:
        """Say whether stored work has failed and is to be delivered again."""
        return any(ended.word == "enqueued" and ended.failures for ended in self.trace.ended or ())

    @staticmethod
    def is_delivered(ended: Ended, running: set[str]) -> bool:
        return bool(running) and ended.execution is Execution.DURABLE and ended.id in running

    def step(self, step: Step) -> RowView:
        started = _round(step.started - self.trace.opened)
        attempt = self.attempt(step.started, step.ended, step.error)
        return RowView(
            kind="step",
            name=_name(step.name),
            state="succeeded" if step.error is None else "failed",
            created=started,
            ended=attempt.ended,
            attempts=[attempt],
            error=attempt.error,
        )

    def ended(self, ended: Ended) -> RowView:
        attempts = [self.failed(failure) for failure in ended.failures or ()]
        waited = bool(attempts) and attempts[-1].started == self.time(ended.started)  # for one that never came
        if ended.attempts and not waited:
            # Without a time of its own it began before anybody recorded.
            attempts.append(self.attempt(ended.started or ended.created, ended.ended, ended.error))
        return RowView(
            kind="task",
            id=ended.id,
            name=_name(ended.name),
            state=ended.word or ended.outcome.state.value,
            outcome="" if ended.word == "enqueued" else ended.outcome.value,
            execution=ended.execution.value,
            created=_round(ended.created - self.trace.opened),
            ended=self.time(ended.ended),
            attempts=attempts,
            error=ended.error.line if ended.error is not None else "",
            site=ended.site if ended.code is not None else "",
            has_arguments=ended.arguments is not None,
        )

    def unfinished(self, task: TaskHandle[Any]) -> RowView:
        known = self.recorder.stored.find(task)
        failures = tuple(self.recorder.failures(task)) if known is None else tuple(known[1].failures or ())
        attempts = [self.failed(failure) for failure in failures]
        waits = known is None and bool(failures) and failures[-1].started == task._started
        if task._attempts and not waits:
            # Without a time of its own it began before anybody recorded: it is shown from its registration on.
            attempts.append(self.attempt(task._started or task._created, None, None))
        return RowView(
            kind="task",
            id=task.id,
            name=_name(task.name),
            state=(TaskState.RUNNING if task._attempts else TaskState.PENDING).value,
            execution=task.execution.value,
            created=_round((task._created if known is None else known[1].created) - self.trace.opened),
            attempts=attempts,
            error=failures[-1].error.line if failures else "",
            site=task.site,
            has_arguments=bool(task._args or task._kwargs),
        )

    def failed(self, failure: Attempt) -> AttemptView:
        return self.attempt(failure.started, failure.ended, failure.error, failure.delay)

    def attempt(
        self, started: float, ended: float | None, error: ErrorRecord | None, backoff: float = _NONE
    ) -> AttemptView:
        return AttemptView(
            started=_round(started - self.trace.opened),
            ended=self.time(ended),
            error=error.line if error is not None else "",
            backoff=_round(backoff) if backoff else _NONE,
            traceback=format_error(error) if error is not None and self.details else "",
        )


def _round(seconds: float) -> float:
    return round(seconds, 6)


def _name(name: str) -> str:
    return shorten(redact(name), _NAME)
