"""structlog: events as its log entries, and the task bound to every line that work writes.

Needs the extra ``structlog``. Use it instead of the default lines on the logger ``deferred``,
or beside them.
"""

from __future__ import annotations

import contextlib
from contextvars import Token
from typing import Any

import structlog

from deferred._events import (
    DrainFinished,
    Event,
    Execution,
    TaskAbandoned,
    TaskCancelled,
    TaskDead,
    TaskDiscarded,
    TaskEvent,
    TaskFailed,
    TaskRejected,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
    TaskView,
)

__all__ = ["StructlogHook"]


class StructlogHook:
    """A hook that writes events to structlog: ``Supervisor(hooks=[StructlogHook()])``.

    While a task runs, ``task``, ``task_id``, ``attempt`` and ``request_id`` are bound as
    context variables: with ``structlog.contextvars.merge_contextvars`` among the processors,
    every line that the work writes carries them. They are the task's own; no other sees them.
    Work that a sequential route waits for shares the variables of its handler, which are as they
    were when it is over.

    Args:
        logger: A structlog logger; ``structlog.get_logger("deferred")`` when None.

    Example:
        >>> hook = StructlogHook()
        >>> TaskStarted in hook.events
        True
    """

    events: tuple[type[Event], ...] = (
        DrainFinished,
        TaskAbandoned,
        TaskCancelled,
        TaskDead,
        TaskDiscarded,
        TaskFailed,
        TaskRejected,
        TaskRetrying,
        TaskStarted,
        TaskSucceeded,
    )

    def __init__(self, logger: Any = None) -> None:  # loggers have no type of their own
        self._logger: Any = structlog.get_logger("deferred") if logger is None else logger
        self._inline: dict[TaskView, dict[str, Token[Any]]] = {}  # what the handler's variables were

    def __call__(self, event: Event) -> None:
        """Write or bind what happened."""
        try:
            self._write(event)
        finally:
            if self._inline and isinstance(event, _ENDS):
                self._restore(event.task)

    def _bind(self, task: TaskView, attempt: int) -> None:
        """Bind what is known of a task; told inside of it, whose context variables are its own."""
        tokens = structlog.contextvars.bind_contextvars(
            task=task.name, task_id=task.id, attempt=attempt, request_id=task.context_id
        )
        if task.execution is Execution.SEQUENTIAL:  # or they are those of the handler
            self._inline.setdefault(task, dict(tokens))

    def _restore(self, task: TaskView) -> None:
        tokens = self._inline.pop(task, None)
        if tokens is not None:
            with contextlib.suppress(ValueError):  # told elsewhere, of a handler that is gone: nobody reads them
                structlog.contextvars.reset_contextvars(**tokens)

    def _write(self, event: Event) -> None:
        logger = self._logger
        match event:
            case TaskStarted(task=task, attempt=attempt):
                self._bind(task, attempt)
            case TaskFailed(error=error, outcome=outcome):
                logger.error("task failed", outcome=outcome.value, exc_info=error, **_task(event))
            case TaskAbandoned():
                logger.error("task abandoned", **_task(event))
            case TaskCancelled(outcome=outcome):
                logger.warning("task cancelled", outcome=outcome.value, **_task(event))
            case TaskDiscarded(outcome=outcome):
                logger.info("task discarded", outcome=outcome.value, **_task(event))
            case TaskRetrying(error=error, delay=delay):
                logger.info("task retrying", error=type(error).__name__, delay=delay, **_task(event))
            case TaskDead(name=name, reason=reason):
                said = event.error.partition("\n")[0]
                logger.error("dead letter", task=name, task_id=event.id, reason=reason, error=said)
            case TaskRejected(name=name, error=error, context=context):
                logger.warning("task rejected", task=name, reason=str(error), request_id=context.id)
            case DrainFinished(report=report, duration=duration):
                left = [task.name for task in (*report.cancelled, *report.abandoned)]
                write = logger.warning if left else logger.info
                write("drained", duration=duration, finished=report.finished, failed=report.failed, unfinished=left)
            case _:
                pass


_ENDS = (TaskSucceeded, TaskFailed, TaskCancelled, TaskDiscarded, TaskAbandoned)


def _task(event: TaskEvent) -> dict[str, Any]:
    task = event.task
    return {
        "task": task.name,
        "task_id": task.id,
        "attempt": task.attempts,
        "request_id": task.context_id,
        "label": task.label,
        "site": task.site,
    }
