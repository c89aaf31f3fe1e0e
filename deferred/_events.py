"""What happens to work, as data: states, outcomes, events.

Rules of this file: every class is frozen and slotted; times are seconds of the event
loop's clock (``loop.time()``, monotonic); nothing here does anything. An event holds the
task or the context it speaks of by a read-only face (`TaskView`, `ContextView`), so that a
hook sees the live object without this floor knowing who made it.
"""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec

__all__ = [
    "ContextClosed",
    "ContextOpened",
    "ContextSettled",
    "ContextView",
    "DrainFinished",
    "DrainReport",
    "DrainStarted",
    "Event",
    "Execution",
    "Outcome",
    "StepFinished",
    "SupervisorStats",
    "TaskAbandoned",
    "TaskCancelled",
    "TaskDead",
    "TaskDeferred",
    "TaskDiscarded",
    "TaskEnqueued",
    "TaskEvent",
    "TaskFailed",
    "TaskRejected",
    "TaskRetrying",
    "TaskStarted",
    "TaskState",
    "TaskSucceeded",
    "TaskView",
    "UnfinishedTask",
]


class TaskState(enum.Enum):
    """Where a task stands. The five behind ``RUNNING`` are terminal: the first one reached stays."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"
    ABANDONED = "abandoned"


class Outcome(enum.Enum):
    """Why a task is in its terminal state; a closed set. `state` is the state it means."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NON_RETRYABLE = "non_retryable"
    TIMED_OUT = "timed_out"
    EXHAUSTED_ATTEMPTS = "exhausted_attempts"
    EXHAUSTED_DEADLINE = "exhausted_deadline"
    CANCELLED_BY_ITSELF = "cancelled_by_itself"
    CANCELLED_BY_HANDLE = "cancelled_by_handle"
    CANCELLED_BY_DRAIN = "cancelled_by_drain"
    CANCELLED_AT_DEADLINE = "cancelled_at_deadline"  # it would have started after the drain's deadline
    CANCELLED_LEASE_LOST = "cancelled_lease_lost"  # its engine has lost the job, which is delivered again
    DISCARDED_BY_WHEN = "discarded_by_when"
    DISCARDED_BY_OVERFLOW = "discarded_by_overflow"
    DISCARDED_OUT_OF_SCOPE = "discarded_out_of_scope"
    STORED = "pending_stored"  # an engine has it: what happens to it is seen by whoever runs it
    POSTPONED = "pending_postponed"  # this delivery failed, and the engine delivers it again
    ABANDONED = "abandoned"

    state: TaskState

    def __init__(self, value: str) -> None:
        states = {state.value: state for state in TaskState}
        self.state = states.get(value.partition("_")[0], TaskState.FAILED)


class Execution(enum.Enum):
    """How a route runs its steps; chosen by the decorators of `deferred.execution`."""

    SEQUENTIAL = "sequential"
    FIRE_AND_FORGET = "fire_and_forget"
    CONCURRENT = "concurrent"
    DEFERRED = "deferred"
    DURABLE = "durable"


class ContextView(Protocol):
    """The face of a context that events show."""

    @property
    def id(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def execution(self) -> Execution: ...
    @property
    def status(self) -> int | None: ...


class TaskView(Protocol):
    """The face of a task that events show."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def function(self) -> str: ...
    @property
    def created(self) -> float: ...
    @property
    def state(self) -> TaskState: ...
    @property
    def outcome(self) -> Outcome | None: ...
    @property
    def attempts(self) -> int: ...
    @property
    def error(self) -> BaseException | None: ...
    @property
    def label(self) -> str: ...
    @property
    def context_id(self) -> str: ...
    @property
    def site(self) -> str: ...
    @property
    def execution(self) -> Execution: ...
    @property
    def idempotency_key(self) -> str | None: ...
    @property
    def headers(self) -> dict[str, str]: ...


class UnfinishedTask(msgspec.Struct, frozen=True):
    """A task that a drain could not finish.

    Attributes:
        id: The task's id.
        name: The task's name.
        age: Seconds since it was registered.
        attempt: The attempt it was in; 0 when it never started.
        label: The label of its context, such as ``"POST /register"``.
        site: The ``file:line`` that registered it.
    """

    id: str
    name: str
    age: float
    attempt: int
    label: str
    site: str


class DrainReport(msgspec.Struct, frozen=True):
    """What a drain achieved.

    Attributes:
        finished: How many tasks succeeded while it ran (a context's own report: ever).
        failed: How many tasks failed while it ran (a context's own report: ever).
        cancelled: The tasks that ended because the deadline had passed.
        abandoned: The tasks that did not even end when cancelled.
        enqueued: Those of both that were stored instead, and will be run (``on_drain="enqueue"``).
    """

    finished: int = 0
    failed: int = 0
    cancelled: tuple[UnfinishedTask, ...] = ()
    abandoned: tuple[UnfinishedTask, ...] = ()
    enqueued: tuple[UnfinishedTask, ...] = ()


class SupervisorStats(msgspec.Struct, frozen=True):
    """Counts of a supervisor: two of now, five since it was made."""

    pending: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    discarded: int
    abandoned: int


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, at a time of the event loop's clock (seconds)."""

    at: float


class ContextOpened(Event, frozen=True):
    """A unit of work began."""

    context: ContextView


class ContextClosed(Event, frozen=True):
    """The response is out, or failed, or the client is gone."""

    context: ContextView
    error: BaseException | None


class ContextSettled(Event, frozen=True):
    """The unit of work ended and the last of its tasks is settled; always its last event."""

    context: ContextView


class StepFinished(Event, frozen=True):
    """A named part of the unit of work ended; it began at ``started``."""

    context: ContextView
    name: str
    started: float
    error: BaseException | None


class TaskEvent(Event, frozen=True):
    """Something that happened to one task."""

    task: TaskView


class TaskDeferred(TaskEvent, frozen=True):
    """A task was accepted."""


class TaskStarted(TaskEvent, frozen=True):
    """An attempt began; ``attempt`` counts from 1."""

    attempt: int


class TaskRetrying(TaskEvent, frozen=True):
    """An attempt failed and another follows after ``delay`` seconds."""

    error: BaseException
    attempt: int
    delay: float


class TaskSucceeded(TaskEvent, frozen=True):
    """A task returned."""

    attempt: int


class TaskFailed(TaskEvent, frozen=True):
    """A task failed for good: what every error hook is told, once.

    Attributes:
        error: The exception itself, as the task raised it.
        attempt: How many attempts were made.
        label: The label of the context, such as ``"POST /register"``.
        context_id: The id of the context (of the request).
        site: The ``file:line`` that registered the task.
        outcome: Why nothing further is tried.
    """

    error: BaseException
    attempt: int
    label: str
    context_id: str
    site: str
    outcome: Outcome


class TaskCancelled(TaskEvent, frozen=True):
    """A task was cancelled; ``outcome`` tells by whom."""

    outcome: Outcome


class TaskDiscarded(TaskEvent, frozen=True):
    """A task was not run: its ``when`` did not match, or the overflow policy dropped it."""

    outcome: Outcome


class TaskAbandoned(TaskEvent, frozen=True):
    """A task did not end in time and is no longer waited for."""


class TaskEnqueued(Event, frozen=True):
    """Durable work was stored; inside a transaction of the caller's, once that is committed.

    Attributes:
        id: The job's id, which is its idempotency key.
        name: The task's name.
        context: The context it was enqueued in.
    """

    id: str
    name: str
    context: ContextView


class TaskDead(Event, frozen=True):
    """A job became a dead letter; what every ``on_dead`` hook is told.

    It is told before the engine has noted it: a process that is killed in between tells it again.

    Attributes:
        id: The job's id.
        name: The task's name.
        reason: Why, in one word: an outcome, ``"crash_loop"``, ``"payload"`` or ``"unknown_task"``.
        error: What went wrong, as text.
        attempts: How many attempts were made.
    """

    id: str
    name: str
    reason: str
    error: str
    attempts: int


class TaskRejected(Event, frozen=True):
    """Work was refused because a limit is reached: it was never accepted."""

    name: str
    context: ContextView
    error: BaseException


class DrainStarted(Event, frozen=True):
    """A supervisor began to wait for its work.

    Attributes:
        unfinished: How many tasks there were to wait for.
        deadline: The time (of the loop's clock) at which what is left is cancelled.
    """

    unfinished: int
    deadline: float


class DrainFinished(Event, frozen=True):
    """A drain ended; ``duration`` is in seconds."""

    report: DrainReport
    duration: float
