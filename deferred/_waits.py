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
    """Those who wait for room in one supervisor. Lives as long as its loop.

    Args:
        slots: Who runs.
        max_pending: How many tasks may wait at a time.
        max_per_context: How many unfinished tasks one context may have.
    """

    __slots__ = ("_handlers", "_held", "_inside", "_max_pending", "_max_per_context", "_slots", "_tasks", "_times")

    def __init__(self, slots: Slots, max_pending: int, max_per_context: int) -> None:
        self._slots = slots
        self._max_pending = max_pending
        self._max_per_context = max_per_context
        self._tasks: dict[TaskHandle[Any], list[UnitOfWork | None]] = {}  # the contexts whose limits each waits for
        self._inside: dict[Any, dict[TaskHandle[Any], list[UnitOfWork | None]]] = {}  # the same by their own contexts
        self._handlers: dict[UnitOfWork, Counter[str | None]] = {}  # contexts that stay open, with what waits in them
        self._times: Counter[UnitOfWork] = Counter()  # how many waits keep each of these open
        self._held: Counter[str | None] = Counter()  # the sum of what waits in these: by name, and of all as None

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
        full = context if bounded and context.pending >= self._max_per_context else None
        if me is not None:
            if me not in self._tasks:
                self._tasks[me] = self._inside.setdefault(me._unit, {})[me] = []
            self._tasks[me].append(full)
        # A task leaves it to others to close its own context; any other context it has opened itself.
        holds = not context.closed and (me is None or me._unit is not context)
        if holds:
            if context not in self._handlers:
                self._hold(context)
            self._times[context] += 1
        return partial(self._forget, me, full, context if holds else None)

    def _hold(self, context: UnitOfWork) -> None:
        waiting = [task for task in (*(context._waiting or ()), *(context._held or ())) if task._outcome is None]
        tally: Counter[str | None] = Counter(task.name for task in waiting) if self._slots.named else Counter()
        tally[None] = len(waiting)
        self._handlers[context] = tally
        self._held += tally

    def _forget(self, me: TaskHandle[Any] | None, full: UnitOfWork | None, context: UnitOfWork | None) -> None:
        if me is not None:
            self._tasks[me].remove(full)
            if not self._tasks[me]:
                del self._tasks[me]
                inside = self._inside[me._unit]
                del inside[me]
                if not inside:
                    del self._inside[me._unit]
        if context is not None:
            self._times[context] -= 1
            if not self._times[context]:
                del self._times[context]
                self._held -= self._handlers.pop(context)

    def _closes_a_circle(self, me: TaskHandle[Any] | None, context: UnitOfWork, name: str, *, bounded: bool) -> bool:
        slots = self._slots
        running = me is not None and me._slot
        if running and len(self._tasks) >= slots.busy >= slots.max_running:
            return True  # all who run wait: nothing ends, and nothing can start
        if self._held[None] >= self._max_pending:
            return True  # all who wait to run wait for handlers that wait
        if slots.named and self._named_circle(name, running=running):
            return True
        return bounded and not self._eases(context)

    def _named_circle(self, name: str, *, running: bool) -> bool:
        named = self._slots.of(name)
        if named is None or named.free > 0:
            return False
        if self._held[name] >= (named.limit.pending or 0):
            return True
        alike = sum(task.name == name for task in self._tasks) if running and named.full else 0
        return 0 < named.running <= alike

    def _eases(self, context: UnitOfWork) -> bool:
        """Say whether a task of this context may end, unless it has room already.

        A task that waits several times, in a `gather`, waits for all of it. All contexts that are
        waited for from here count as stuck until one has a task that may end, which frees others.
        """
        reach = [context]
        stuck = {context}
        for each in reach:  # it grows
            for waits in self._inside.get(each, {}).values():
                found = {other for other in waits if other is not None and other not in stuck}
                reach += found
                stuck |= found
        before = None
        while len(stuck) != before:
            before = len(stuck)
            for each in reversed(reach):  # who waits was found before what it waits for
                if each in stuck and self._gives_way(each, stuck):
                    stuck.remove(each)
        return context not in stuck

    def _gives_way(self, context: UnitOfWork, stuck: set[UnitOfWork]) -> bool:
        pending = context.pending
        if pending < self._max_per_context:
            return True
        inside = self._inside.get(context, {})
        waiting = sum(task._tracked for task in inside)
        if context in self._handlers:
            waiting += self._handlers[context][None]
        return waiting < pending or any(stuck.isdisjoint(waits) for waits in inside.values())
