"""How a task ends: counted, told, its slot given back.

Rules of this file: `settle` (and `succeed`, its short way) is the one place where a task
reaches a terminal state, and a task reaches one once; everything here happens on the event loop.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from asyncio import Future
from asyncio import _get_running_loop as running_loop
from typing import Any

from deferred._accept import Acceptance
from deferred._call import Kind, claimed, close_refused, is_coroutine
from deferred._drain import Drain
from deferred._events import (
    Outcome,
    TaskAbandoned,
    TaskCancelled,
    TaskDiscarded,
    TaskFailed,
    TaskState,
    TaskSucceeded,
)
from deferred._task import TaskHandle
from deferred._unit import UnitOfWork

__all__ = ["Settlement"]

_ASYNC = Kind.ASYNC
_OK = Outcome.SUCCEEDED
_FEW = 64
"""How many settled tasks may wait for a response: few enough to hold, many enough to let go of at once."""


class Settlement(Acceptance):
    """The accounts of one supervisor. Lives as long as it.

    Attributes:
        succeeded: How many tasks ended well; `unhappy` counts the other endings.
        drains: The drains under way.
    """

    __slots__ = ("drains", "succeeded", "unhappy")

    def __init__(self, **acceptance: Any) -> None:
        super().__init__(**acceptance)
        self.succeeded = 0
        self.unhappy = dict.fromkeys(TaskState, 0)
        self.drains: list[Drain] = []

    def drains_of(self, task: TaskHandle[Any], /) -> tuple[Drain, ...]:
        """Return the drains that wait for `task`."""
        context: Any = task._unit
        return (*self.drains, *context._drains)

    @abc.abstractmethod
    def pump(self) -> None:
        """Start those who wait for a slot, from the next turn of the loop on."""

    def succeed(self, task: TaskHandle[Any], /) -> None:
        """Settle a task that has returned: the short way, where nobody waits."""
        if not self.calm or not task._tracked or task._waiters is not None or task._outcome is not None:
            self.settle(task, _OK)
            return
        task._outcome = _OK
        task._vars = task._runner = None
        if task._kind is not _ASYNC and is_coroutine(task._work):
            claimed.discard(task._work)
        context: Any = task._unit
        context._finished += 1
        self.succeeded += 1
        hooks = self.hooks
        if hooks.succeeded:
            hooks.tell(hooks.succeeded, TaskSucceeded(task, task._attempts, at=self.now()))
            if not self.calm:  # a hook has begun to wait
                self._let_go(task, context, (*self.drains, *context._drains))
                return
        context._pending -= 1
        self.slots.busy -= 1
        self.tasks.discard(task)
        if hooks.settled and context._ended and not context.pending:
            context.tell_settled()

    def settle(self, task: TaskHandle[Any], outcome: Outcome, /) -> None:
        """Bring `task` to its end: once, whoever comes first."""
        if task._outcome is not None:
            return
        if outcome is Outcome.ABANDONED and self.steps:
            for step in reversed(self.steps_of(task)):  # left behind with it: the innermost first
                self.settle(step, Outcome.ABANDONED)
        task._outcome = outcome
        context: Any = task._unit
        drains = self.drains_of(task)
        self._tell_ending(task, context, outcome)
        self._let_go(task, context, drains)

    def steps_of(self, task: TaskHandle[Any]) -> list[TaskHandle[Any]]:
        """Return the steps that run in line inside `task`, the outermost first."""
        return [step for step, around in self.steps.items() if around is task]

    def _let_go(self, task: TaskHandle[Any], context: Any, drains: tuple[Drain, ...]) -> None:
        """Let everybody know that `task` is over who waits for it, or for what it held."""
        for drain in drains:
            drain.note(task)
        self._give_back(task)
        if task._tracked:
            task._tracked = False
            self.tasks.discard(task)
            context._pending -= 1
            if self.hooks.settled and context._ended and not context.pending:
                context.tell_settled()
        task._vars = task._runner = None
        if task._waiters is not None:
            _notify(task._waiters)
        if self.slots.queues:  # who has waited for it goes on before others start
            self.pump()
        if self.rooms:
            self.make_room(context, task.name)
        for drain in drains:
            drain.wake()

    def _give_back(self, task: TaskHandle[Any]) -> None:
        """Give back the slot, and what only some tasks hold."""
        slots = self.slots
        if task._slot:
            task._slot = False
            slots.give(task)
        else:
            slots.drop(task)
            if task._tracked:
                _shed(task._unit)
        detached = task in self.detached
        if slots.named and (detached or task in self.tasks):
            slots.forget(task)
        if detached:
            self.detached.discard(task)
            self.count_room()
        if task._kind is Kind.AWAITABLE:
            close_refused(task._work)  # if it was never awaited
            if is_coroutine(task._work):
                claimed.discard(task._work)

    def _tell_ending(self, task: TaskHandle[Any], context: UnitOfWork, outcome: Outcome) -> None:
        now, state = self.now(), outcome.state
        if outcome is _OK:
            self.succeeded += 1
            context._finished += 1
            if self.hooks.succeeded:
                self.hooks.emit(TaskSucceeded(task, task._attempts, at=now))
            return
        if state is TaskState.PENDING:
            return  # TaskRetrying has told of it
        self.unhappy[state] += 1
        if state is TaskState.FAILED:
            context._failed += 1
            error: Any = task._error
            with contextlib.suppress(Exception):  # an error may refuse to be looked at
                task._trace = error.__traceback__
            event = TaskFailed(task, error, task._attempts, context.label, context.id, task.site, outcome, at=now)
            self.hooks.emit(event, (*self.on_error, *context._on_error, *task._options.on_error))
        elif state is TaskState.CANCELLED:
            self.hooks.emit(TaskCancelled(task, outcome, at=now))
        elif state is TaskState.DISCARDED:
            self.hooks.emit(TaskDiscarded(task, outcome, at=now))
        else:
            _leave_behind(task._runner)
            self.hooks.emit(TaskAbandoned(task, at=now))


def _shed(context: Any) -> None:
    """Let go of settled tasks that wait for the response, once they are most of those that do."""
    most = 2 * context.pending + _FEW
    if context._waiting is not None and len(context._waiting) > most:
        context._waiting = [task for task in context._waiting if task._outcome is None]
    if context._held is not None and len(context._held) > most:
        context._held = [task for task in context._held if task._outcome is None]


def _notify(waiters: list[Future[None]]) -> None:
    for waiter in tuple(waiters):
        loop = waiter.get_loop()
        if loop is running_loop():
            _wake(waiter)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_wake, waiter)


def _wake(waiter: Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _leave_behind(runner: asyncio.Task[None] | None) -> None:
    """Take an asyncio task off the loop's list, so that `asyncio.run` does not wait for it for ever."""
    if runner is not None and not runner.done():
        asyncio._unregister_task(runner)
