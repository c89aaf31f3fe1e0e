"""Every failure, cancellation and drain as a line of the standard library's logging.

Installed by default, on the logger ``deferred``. Text that users or their data chose is
written as `repr`, so that it can break no line of the log.
"""

from __future__ import annotations

import logging

from deferred._events import (
    DrainFinished,
    DrainReport,
    Event,
    Outcome,
    TaskAbandoned,
    TaskCancelled,
    TaskDead,
    TaskDiscarded,
    TaskFailed,
    TaskRejected,
    TaskRetrying,
)

__all__ = ["SHOWN", "log_event", "logger"]

logger: logging.Logger = logging.getLogger("deferred")

SHOWN = 20
"""How many tasks a line names; the report itself names all."""


def log_event(event: Event) -> None:
    """Write one event to the logger ``deferred``; a hook.

    Failures and abandonments are errors; cancellation by a drain and refusals are warnings;
    retries, discarded work and complete drains are information.
    """
    match event:
        case TaskFailed(task=task, error=error):
            logger.error(
                "task %r failed (%s) after %d attempt(s); deferred at %s, context %s %r",
                task.name,
                event.outcome.value,
                event.attempt,
                event.site,
                event.context_id,
                event.label,
                exc_info=error,
            )
        case TaskAbandoned(task=task):
            logger.error("task %r was abandoned in attempt %d; deferred at %s", task.name, task.attempts, task.site)
        case TaskCancelled(outcome=Outcome.CANCELLED_BY_DRAIN | Outcome.CANCELLED_AT_DEADLINE):
            pass  # the drain's own line names them, however many there are
        case TaskCancelled(task=task, outcome=outcome):
            level = logging.INFO if outcome is Outcome.CANCELLED_BY_HANDLE else logging.WARNING
            logger.log(level, "task %r was cancelled (%s); deferred at %s", task.name, outcome.value, task.site)
        case TaskDiscarded(task=task, outcome=outcome):
            logger.info("task %r was discarded (%s); deferred at %s", task.name, outcome.value, task.site)
        case TaskDead(name=name, reason=reason):
            said = event.error.partition("\n")[0]
            logger.error("job %s of task %r is a dead letter (%s): %r", event.id, name, reason, said)
        case TaskRejected(error=error):
            logger.warning("%s", error)  # it names the task
        case TaskRetrying(task=task):
            logger.info(
                "task %r failed in attempt %d (%s), retrying in %.3f s",
                task.name,
                event.attempt,
                type(event.error).__name__,
                event.delay,
            )
        case DrainFinished(report=report):
            _log_report(report, event.duration)
        case _:
            pass


log_event.events = (  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]  # read by Hooks
    DrainFinished,
    TaskAbandoned,
    TaskCancelled,
    TaskDead,
    TaskDiscarded,
    TaskFailed,
    TaskRejected,
    TaskRetrying,
)


def _log_report(report: DrainReport, duration: float) -> None:
    unfinished = [("cancelled", task) for task in report.cancelled]
    unfinished += [("abandoned", task) for task in report.abandoned]
    unfinished += [("handed over", task) for task in report.enqueued]
    names = [
        f"; {what} {task.name!r} (id {task.id}, age {task.age:.3f} s, attempt {task.attempt}, "
        f"{task.label!r}, deferred at {task.site})"
        for what, task in unfinished[:SHOWN]
    ]
    logger.log(
        logging.WARNING if unfinished else logging.INFO,
        "drained in %.3f s: %d finished, %d failed, %d cancelled, %d abandoned%s%s%s",
        duration,
        report.finished,
        report.failed,
        len(report.cancelled),
        len(report.abandoned),
        f", {len(report.enqueued)} handed over" if report.enqueued else "",
        "".join(names),
        f" and {len(unfinished) - SHOWN} more" if len(unfinished) > SHOWN else "",
    )
