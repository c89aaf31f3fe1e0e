"""Wait for work; at the deadline cancel it; after the grace period abandon it.

A `Drain` watches a set of live tasks: a whole supervisor's, or one context's. It is told of
every task that settles (`note`), so that its report is complete whatever the order of
events, and it bounds itself: no server does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from typing import Any

from deferred._events import DrainReport, Execution, Outcome, TaskState, UnfinishedTask
from deferred._task import Clock, TaskHandle, Unit, by_age

__all__ = ["Drain"]

Cancel = Callable[[TaskHandle[Any], Outcome], bool]
Settle = Callable[[TaskHandle[Any], Outcome], None]


class Drain:
    """One wait for a set of tasks. Lives from the call of ``drain()`` to its report.

    Args:
        live: The set that tasks leave when they settle; read, never changed.
        timeout: Seconds until what is left is cancelled.
        grace: Seconds between that and abandonment.
        me: The task that drains, if one does: it must not wait for itself.
        drainers: All tasks that drain now; a task does not wait for these either.
        now: The clock that deadlines and the waits between attempts are told by.
        between: Those that wait between two attempts, in line or not.
        unit: Wait for the tasks of this context alone.
    """

    def __init__(
        self,
        live: AbstractSet[TaskHandle[Any]],
        timeout: float,
        grace: float,
        *,
        me: TaskHandle[Any] | None,
        drainers: set[TaskHandle[Any]],
        now: Clock,
        between: AbstractSet[TaskHandle[Any]],
        unit: Unit | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = now
        self._live = live
        self._between = between
        self._unit = unit
        self._me = me
        self._drainers = drainers
        self._grace = grace
        self._idle: asyncio.Future[None] | None = None
        self._limit: asyncio.Timeout | None = None
        self._running = False
        self.reported: asyncio.Future[DrainReport] = self._loop.create_future()  # for those who join it
        self.joined = 0  # how many wait for its end, beside whoever runs it
        self.left = False  # whether it was cancelled, and has left its work to those
        self.started = now()
        self.deadline = self.started + timeout
        self.finished = 0
        self.failed = 0
        self.cancelled: list[UnfinishedTask] = []
        self.abandoned: list[UnfinishedTask] = []
        self.lost: list[TaskHandle[Any]] = []  # the tasks of both

    def unfinished(self) -> list[TaskHandle[Any]]:
        """Return the tasks that this drain still waits for, the oldest first."""
        tasks = (task for task in tuple(self._live) if task not in self._skipped)
        if self._unit is not None:
            tasks = (task for task in tasks if task._unit is self._unit)
        return by_age(tasks)

    def note(self, task: TaskHandle[Any]) -> None:
        """Count a task that has just reached its terminal state."""
        if not task._tracked:
            if task._outcome is Outcome.ABANDONED and task._execution is Execution.SEQUENTIAL:
                self.abandoned.append(self._record(task))  # a step in line, left behind with its task
            return
        if task._outcome is Outcome.SUCCEEDED:
            self.finished += 1
        elif task._outcome is Outcome.ABANDONED:
            self.lost.append(task)
            self.abandoned.append(self._record(task))
        elif task._outcome is Outcome.CANCELLED_BY_DRAIN or task._outcome is Outcome.CANCELLED_AT_DEADLINE:
            self.lost.append(task)
            self.cancelled.append(self._record(task))
        elif task.state is TaskState.FAILED:
            self.failed += 1

    def wake(self) -> None:
        """Stop waiting if nothing is left; called when a task has settled."""
        if self._idle is not None and not self._idle.done() and not self.broke_off and not self._left():
            self._idle.set_result(None)

    def _left(self) -> int:
        skipped = [task for task in self._skipped if task in self._live]
        if self._unit is None:
            return len(self._live) - len(skipped)
        return self._unit.pending - sum(task._unit is self._unit for task in skipped)

    @property
    def broke_off(self) -> bool:
        """Whether its loop was closed under it: whoever takes over settles what is left, or has done so."""
        return self._loop.is_closed()

    @property
    def _skipped(self) -> set[TaskHandle[Any]]:
        return self._drainers if self._me is not None else set()

    async def run(self, cancel: Cancel, settle: Settle, beside: Callable[[TaskHandle[Any]], Iterable[Drain]]) -> None:
        """Wait, cancel, abandon.

        When it is itself cancelled it re-raises, and abandons at once what nobody else waits for:
        work that another drain waits for, or somebody who has joined this one, has their time.

        Args:
            cancel: What cancels a task.
            settle: What brings a task to its end.
            beside: Return all drains that a task is waited for by.
        """
        if self._me is not None:
            self._drainers.add(self._me)
        self._running = True
        left: list[TaskHandle[Any]] = []
        try:
            if not await self._wait(self.deadline):
                self._cut(cancel)
                if not await self._wait(self.deadline + self._grace):
                    self._cut(cancel)  # what came in during the grace period and never started
        except asyncio.CancelledError:
            self.left = self.joined > 0
            left = [task for task in self.unfinished() if self.left or any(map(self._leaves_to, beside(task)))]
            raise
        finally:
            self._running = False
            for task in self.unfinished() if self._left() and not self.broke_off else ():
                if task not in left:
                    settle(task, Outcome.ABANDONED)
            if self._me is not None:
                self._drainers.discard(self._me)

    def _leaves_to(self, other: Drain) -> bool:
        """Say whether work is left to `other`: no task runs that, and it is as wide as this one or a task runs this."""
        wide = self._me is not None or other._unit is None or other._unit is self._unit
        return wide and other is not self and other._running and other._me is None

    def hasten(self, deadline: float) -> None:
        """Cancel what is left at this time of the clock, if that is earlier."""
        if deadline < self.deadline:
            self.deadline = deadline
            if self._limit is not None and not self._limit.expired():
                self._limit.reschedule(self._loop.time() + max(0.0, deadline - self._now()))
            self.skip_waits()

    def report(self, stored: Collection[str] = ()) -> DrainReport:
        """Return what was achieved so far; tasks with an id in `stored` were handed over to an engine."""
        cancelled, abandoned, enqueued = (
            tuple(task for task in tasks if (task.id in stored) is handed_over)
            for tasks, handed_over in (
                (self.cancelled, False),
                (self.abandoned, False),
                ([*self.cancelled, *self.abandoned], True),
            )
        )
        return DrainReport(self.finished, self.failed, cancelled, abandoned, enqueued)

    def cut(self) -> None:
        """Wait no longer: cancel what is left, or abandon it when that is done already."""
        self.deadline = min(self.deadline, self._now())
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(self._loop.time())

    def skip_waits(self) -> None:
        """Cut every wait between attempts that cannot end before the deadline."""
        for task in by_age(self._between):  # not all that it waits for: each request may have a drain of its own
            detached = not task._tracked and task._execution is not Execution.SEQUENTIAL
            if detached or (self._unit is not None and task._unit is not self._unit):
                continue
            if task._backoff is not None and not task._backoff.done() and task._retry_at >= self.deadline:
                task._backoff.set_result(False)

    def _cut(self, cancel: Cancel) -> None:
        for task in self.unfinished():
            cancel(task, Outcome.CANCELLED_BY_DRAIN)

    async def _wait(self, until: float) -> bool:
        """Wait until nothing is left, at most until this time of the clock."""
        try:
            async with asyncio.timeout(until - self._now()) as self._limit:
                while self._left():
                    self._idle = self._loop.create_future()
                    await self._idle
        except TimeoutError:
            return not self._left()
        finally:
            self._idle = self._limit = None
        return True

    def _record(self, task: TaskHandle[Any]) -> UnfinishedTask:
        age = max(0.0, self._now() - task._created)
        return UnfinishedTask(task.id, task.name, age, task._attempts, task.label, task.site)
