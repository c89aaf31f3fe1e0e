"""What nobody has dealt with: errors unseen, and work that did not come to its end."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterable
from typing import Any, cast

from deferred._events import Event, Execution, Outcome, TaskAbandoned, TaskCancelled, TaskFailed
from deferred._task import TaskHandle, Unit

__all__ = ["Findings", "UnfinishedWorkWarning"]

_WHY = {
    Outcome.CANCELLED_BY_DRAIN: "did not end in time and was cancelled",
    Outcome.CANCELLED_AT_DEADLINE: "had not started when the drain's time was up",
    Outcome.CANCELLED_BY_ITSELF: "was cancelled as its event loop closed, or raised CancelledError",
    Outcome.CANCELLED_LEASE_LOST: "was cancelled as its worker had lost the lease",
    Outcome.ABANDONED: "ignored its cancellation, or its event loop was closed",
}


class UnfinishedWorkWarning(UserWarning):
    """Deferred work did not come to its end while a test waited for it."""


class Findings:
    """The errors and leftovers of a test. Lives as long as its kit."""

    def __init__(self) -> None:
        self.allowed: tuple[type[BaseException], ...] = ()
        self.leftovers_allowed = False
        self.injected: list[BaseException] = []  # raised because the test said so
        self._failures: list[TaskFailed] = []
        self._lost: list[tuple[Unit, str]] = []

    def note(self, event: Event) -> None:
        """Note a final failure, or an end that nobody wants."""
        if isinstance(event, TaskFailed):
            self._failures.append(event)
        elif isinstance(event, TaskCancelled | TaskAbandoned):
            task = cast("TaskHandle[Any]", event.task)
            if task.outcome in _WHY and task.execution is not Execution.SEQUENTIAL:
                self._lost.append((task._unit, _described(task, _WHY[task.outcome])))

    def note_unfinished(self, tasks: Iterable[TaskHandle[Any]]) -> None:
        """Note tasks that can never end: nothing turns their event loop any more."""
        why = "can never end: its event loop is closed (wait for it there; use a test client as a context manager)"
        self._lost += [(task._unit, _described(task, why)) for task in tasks]

    def note_untracked(self, starter: TaskHandle[Any], name: str) -> None:
        """Note an asyncio task of this name, which deferred work has started by itself."""
        why = f"started {name} by create_task, which nobody waits for: hand it to wait_until()"
        self._lost.append((starter._unit, _described(starter, why)))

    def take_errors(self, unit: Unit | None = None) -> list[TaskFailed]:
        """Return the failures that nobody has seen, of one context or of all; they are seen then."""
        mine = [event for event in self._failures if unit is None or _unit_of(event) is unit]
        self._failures = [event for event in self._failures if event not in mine]
        return [event for event in mine if _unseen(event) and not self._expected(event.error)]

    def _expected(self, error: BaseException) -> bool:
        if isinstance(error, self.allowed) or any(error is injected for injected in self.injected):
            return True
        members: tuple[BaseException, ...] = error.exceptions if isinstance(error, BaseExceptionGroup) else ()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # of anything
        return bool(members) and all(map(self._expected, members))

    def take_lost(self, unit: Unit | None = None) -> list[str]:
        """Return what did not come to its end, a text each, once."""
        mine = [entry for entry in self._lost if unit is None or entry[0] is unit]
        self._lost = [entry for entry in self._lost if entry not in mine]
        return [] if self.leftovers_allowed else [text for _, text in mine]

    def raise_errors(self, unit: Unit | None = None) -> None:
        """Raise what nobody has seen: one error as itself, several as a group."""
        __tracebackhide__ = True
        errors = [event.error for event in self.take_errors(unit)]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            message = f"{len(errors)} deferred tasks failed"
            raise BaseExceptionGroup(message, errors)

    def warn(self, unit: Unit | None, timeout: float, stacklevel: int) -> None:
        """Warn of what did not come to its end."""
        lost = self.take_lost(unit)
        if lost:
            message = f"{len(lost)} piece(s) of deferred work are unfinished after {timeout:g} s: {'; '.join(lost)}"
            warnings.warn(message, UnfinishedWorkWarning, stacklevel=stacklevel + 1)

    def verdict(self) -> tuple[str, BaseException | None] | None:
        """Return what the test has to fail with: a text and the cause; None when all is well."""
        events, lost = self.take_errors(), self.take_lost()
        if not events and not lost:
            return None
        lines = [_described(_task_of(event), f"raised {_short(event.error)}") for event in events]
        errors = [event.error for event in events]
        cause = errors[0] if len(errors) == 1 else BaseExceptionGroup("deferred work", errors) if errors else None
        hint = "Await what is expected to fail, or use `deferred.allow_errors(...)`." if events else ""
        more = "Wait for it, or use `deferred.allow_leftovers()`." if lost else ""
        what = "\n".join(f"  {line}" for line in (*lines, *lost))
        return f"deferred work went wrong unnoticed:\n{what}\n{' '.join(filter(None, (hint, more)))}", cause


def _unseen(event: TaskFailed) -> bool:
    """Say whether nobody has raised this error again: `await handle` and the like add to its traceback."""
    task = _task_of(event)
    return task.execution is not Execution.SEQUENTIAL and event.error.__traceback__ is task._trace


def _task_of(event: TaskFailed) -> TaskHandle[Any]:
    return cast("TaskHandle[Any]", event.task)  # events show the live object by its read-only face


def _unit_of(event: TaskFailed) -> Unit:
    return _task_of(event)._unit


def _described(task: TaskHandle[Any], what: str) -> str:
    where = f" by {task.label}" if task.label else ""
    return f"task {task.name!r} (deferred at {task.site}{where}) {what}"


def _short(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()
