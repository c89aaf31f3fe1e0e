"""When each part of a watched request ran, for the page's waterfalls.

A request is watched when it carries the header `Marathon-Run`, a name that its sender has chosen.
The hook is installed with the first of them and removed when the last has settled: requests that
nobody watches pay nothing. What is kept is bounded, the oldest runs make room.
"""

import asyncio
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.datastructures import State

from deferred import (
    ContextClosed,
    ContextSettled,
    Event,
    StepFinished,
    Supervisor,
    TaskAbandoned,
    TaskCancelled,
    TaskDead,
    TaskDeferred,
    TaskDiscarded,
    TaskEnqueued,
    TaskEvent,
    TaskFailed,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
    current_context,
)

HEADER: Final = "Marathon-Run"
CAPACITY: Final = 200  # runs; a press of the page makes five
MAX_ERROR: Final = 300  # characters of an error's text

_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_WATCHED: Final = (
    *(ContextClosed, ContextSettled, StepFinished),
    *(TaskDeferred, TaskEnqueued, TaskStarted, TaskRetrying, TaskDead),
    *(TaskSucceeded, TaskFailed, TaskCancelled, TaskDiscarded, TaskAbandoned),
)
_ENDS: Final[dict[type[Event], str]] = {
    TaskSucceeded: "succeeded",
    TaskFailed: "failed",
    TaskCancelled: "cancelled",
    TaskDiscarded: "discarded",
    TaskAbandoned: "abandoned",
}


class Segment(msgspec.Struct):
    """One attempt: from when to when; `end` is None while it runs. Milliseconds from the run's start."""

    start: float
    end: float | None = None
    failed: bool = False


class Row(msgspec.Struct):
    """A step of the request, or a task that it left behind, with its attempts."""

    name: str
    kind: str  # "step" or "task"
    created: float  # milliseconds from the run's start
    state: str = "pending"  # then "running", "retrying", and what it came to
    segments: list[Segment] = []
    error: str | None = None


class Run(msgspec.Struct):
    """One watched request. `answered` is when the last byte of the answer was sent, in milliseconds."""

    id: str
    now: float = 0.0  # the moment this was asked for
    answered: float | None = None
    rows: list[Row] = []


class _Watched:
    """A run as it goes on, with the clock it is measured by."""

    def __init__(self, name: str, opened: float) -> None:
        self.run = Run(id=name)
        self.opened = opened  # seconds of the loop's clock
        self.settled = False
        self.tasks: dict[str, Row] = {}

    def milliseconds(self, at: float) -> float:
        """Return a time of the loop's clock as milliseconds from the run's start."""
        return round((at - self.opened) * 1000, 3)

    @property
    def is_over(self) -> bool:
        return self.settled and all(row.state in _ENDS.values() for row in self.tasks.values())


class Timeline:
    """The watched runs of one app, which it lives as long as. It is a hook of the supervisor."""

    events = _WATCHED

    def __init__(self, supervisor: Supervisor, *, capacity: int = CAPACITY) -> None:
        """Watch nothing yet.

        Args:
            supervisor: Whose events tell the times.
            capacity: How many runs are kept.
        """
        self.process = secrets.token_hex(8)  # tells this app from the one that is started after it
        self._supervisor = supervisor
        self._capacity = capacity
        self._runs: OrderedDict[str, _Watched] = OrderedDict()  # by name
        # Those that are not over, by the id of their context, and of each job that they have stored:
        # stored work runs in a context of its own.
        self._open: dict[str, _Watched] = {}
        self._installed = False

    async def notice(self, request: Request[Any, Any, State]) -> None:
        """Watch a request from here on, if it asks for it."""
        name = request.headers.get(HEADER, "")
        if not _NAME.fullmatch(name) or name in self._runs:
            return
        watched = _Watched(name, asyncio.get_running_loop().time())
        self._runs[name] = watched
        self._open[current_context().id] = watched
        while len(self._runs) > self._capacity:
            _, oldest = self._runs.popitem(last=False)
            self._forget(oldest)
        if not self._installed:
            self._supervisor.add_hook(self)
            self._installed = True

    def runs(self, names: Iterable[str]) -> list[Run]:
        """Return the runs of these names as they stand now; unknown ones are left out."""
        now = asyncio.get_running_loop().time()
        found = [self._runs[name] for name in dict.fromkeys(names) if name in self._runs]
        for watched in found:
            watched.run.now = watched.milliseconds(now)
        return [watched.run for watched in found]

    def __call__(self, event: Event) -> None:
        """Note what happened to a watched request; anything else is none of its business."""
        if isinstance(event, TaskEvent):
            watched = self._open.get(event.task.context_id) or self._open.get(event.task.id)
            if watched is not None:
                _note_task(watched, event)
        elif isinstance(event, ContextClosed | ContextSettled | StepFinished | TaskEnqueued):
            watched = self._open.get(event.context.id)
            if watched is not None:
                _note_context(watched, event)
                if isinstance(event, TaskEnqueued):
                    self._open[event.id] = watched
        elif isinstance(event, TaskDead):
            watched = self._open.get(event.id)
            if watched is not None:
                _note_dead(watched, event)
        else:
            return
        if watched is not None and watched.is_over:
            self._forget(watched)
            if not self._open:
                self._supervisor.remove_hook(self)
                self._installed = False

    def _forget(self, watched: _Watched) -> None:
        self._open = {name: known for name, known in self._open.items() if known is not watched}


def _note_context(watched: _Watched, event: ContextClosed | ContextSettled | StepFinished | TaskEnqueued) -> None:
    at = watched.milliseconds(event.at)
    match event:
        case StepFinished():
            start = watched.milliseconds(event.started)
            failed = event.error is not None
            row = Row(event.name, "step", start, "failed" if failed else "succeeded", [Segment(start, at, failed)])
            row.error = None if event.error is None else _describe(event.error)
            watched.run.rows.append(row)
        case ContextClosed():
            watched.run.answered = at
        case ContextSettled():
            watched.settled = True
        case TaskEnqueued():
            _row(watched, event.id, event.name, at)


def _note_task(watched: _Watched, event: TaskEvent) -> None:
    at = watched.milliseconds(event.at)
    row = _row(watched, event.task.id, event.task.name, at)
    last = row.segments[-1] if row.segments else None
    match event:
        case TaskDeferred():
            return
        case TaskStarted():
            row.state = "running"
            row.segments.append(Segment(at))
            return
        case TaskRetrying() | TaskFailed():
            row.error = _describe(event.error)
    row.state = _ENDS.get(type(event), "retrying")
    if last is not None and last.end is None:
        last.end = at
        last.failed = row.state != "succeeded"


def _note_dead(watched: _Watched, event: TaskDead) -> None:
    row = _row(watched, event.id, event.name, watched.milliseconds(event.at))
    row.state = "failed"
    row.error = row.error or event.error[:MAX_ERROR]


def _row(watched: _Watched, task: str, name: str, at: float) -> Row:
    """Return the row of a task or a job, made at the first word of it."""
    row = watched.tasks.get(task)
    if row is None:
        row = watched.tasks[task] = Row(name, "task", at)
        watched.run.rows.append(row)
    return row


def _describe(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an error whose words raise is told by its name
        text = type(error).__name__
    visible = "".join(character if character.isprintable() else " " for character in text)
    return visible[:MAX_ERROR]
