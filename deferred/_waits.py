"""Who waits for room, and whether it can ever come.

Rules of this file: a wait that nobody is left to end is refused when it would begin, which is the
last moment at which somebody can be told; so it is always the one that would close a circle. Room
comes when a task ends or starts. One that waits for room itself does neither, and what is
deferred in an open context does not start as long as that one's handler waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from deferred._limits import Slots
from deferred._task import TaskHandle
from deferred._unit import UnitOfWork

__all__ = ["Waits"]


class Waits:
    """Those who wait for room in one supervisor. Lives as long as it.

    Args:
        slots: Who runs.
        max_pending: How many tasks may wait at a time.
        max_per_context: How many unfinished tasks one context may have.
    """

    __slots__ = ("_handlers", "_held", "_inside", "_max_pending", "_max_per_context", "_slots", "_tasks")

    def __init__(self, slots: Slots, max_pending: int, max_per_context: int) -> None:
        self._slots = slots
        self._max_pending = max_pending
        self._max_per_context = max_per_context
        self._tasks: dict[TaskHandle[Any], UnitOfWork | None] = {}  # that wait, with the context whose limit it is
        self._inside: dict[Any, dict[TaskHandle[Any], UnitOfWork | None]] = {}  # the same by their own contexts
        self._handlers: dict[UnitOfWork, Counter[str | None]] = {}  # contexts that stay open, with what waits in them
        self._held: Counter[str | None] = Counter()  # the sum of these: by name, and of all as None

    def clear(self) -> None:
        """Forget all: they wait on a loop that is gone, or in another process."""
        self._tasks.clear()
        self._inside.clear()
        self._handlers.clear()
        self._held.clear()

    def never(self, me: TaskHandle[Any] | None, context: UnitOfWork, name: str, *, bounded: bool) -> bool:
        """Say whether room would never come.

        Args:
            me: The task that would wait; None for a handler, or whoever else is no task.
            context: What the work is registered in.
            name: That of the work.
            bounded: Whether `max_per_context` holds for it.
        """
        forget = self.note(me, context, bounded=bounded)
        try:
            return self._closes_a_circle(me, context, name, bounded=bounded)
        finally:
            forget()

    def note(self, me: TaskHandle[Any] | None, context: UnitOfWork, *, bounded: bool) -> Callable[[], None]:
        """Note that somebody waits; return what takes that back."""
        if me is not None and not me._slot:
            me = None  # a step in line
        task = me if me not in self._tasks else None
        if task is not None:
            full = bounded and context.pending >= self._max_per_context
            self._tasks[task] = self._inside.setdefault(task._unit, {})[task] = context if full else None
        # A task leaves it to others to close its own context; any other context it has opened itself.
        holds = not context.closed and (me is None or me._unit is not context) and context not in self._handlers
        if holds:
            waiting = [task for task in (*(context._waiting or ()), *(context._held or ())) if task._outcome is None]
            tally: Counter[str | None] = Counter(task.name for task in waiting) if self._slots.named else Counter()
            tally[None] = len(waiting)
            self._handlers[context] = tally
            self._held.update(tally)
        return partial(self._forget, task, context if holds else None)

    def _forget(self, task: TaskHandle[Any] | None, context: UnitOfWork | None) -> None:
        if task in self._tasks:  # it is not after `clear`
            del self._tasks[task]
            inside = self._inside[task._unit]
            del inside[task]
            if not inside:
                del self._inside[task._unit]
        if context is not None and (tally := self._handlers.pop(context, None)) is not None:
            for name, count in tally.items():
                left = self._held.pop(name, 0) - count
                if left:
                    self._held[name] = left

    def _closes_a_circle(self, me: TaskHandle[Any] | None, context: UnitOfWork, name: str, *, bounded: bool) -> bool:
        slots = self._slots
        running = me is not None and me._slot
        if running and len(self._tasks) >= slots.busy >= slots.max_running:
            return True  # all who run wait: nothing ends, and nothing can start
        if self._held[None] >= self._max_pending:
            return True  # all who wait to run wait for handlers that wait
        if slots.named and self._named_circle(name, running=running):
            return True
        return bounded and not self._eases(context, set())

    def _named_circle(self, name: str, *, running: bool) -> bool:
        named = self._slots.of(name)
        if named is None or named.free > 0:
            return False
        if self._held[name] >= (named.limit.pending or 0):
            return True
        alike = sum(task.name == name for task in self._tasks) if running and named.full else 0
        return 0 < named.running <= alike

    def _eases(self, context: UnitOfWork, seen: set[UnitOfWork]) -> bool:
        """Say whether a task of this context may end, unless it has room already."""
        pending = context.pending
        if pending < self._max_per_context:
            return True
        inside = self._inside.get(context, {})
        stuck = sum(task._tracked for task in inside)
        if context in self._handlers:
            stuck += self._handlers[context][None]
        seen.add(context)
        others = (other for other in inside.values() if other not in seen)
        return stuck < pending or any(other is None or self._eases(other, seen) for other in others)
