"""How many tasks run, and who is next.

Rules of this file: a slot is taken by `Slots.take` and given back by `Slots.give`, once
each, both on the event loop; those who wait are served first come, first served within
their context, and in turn between contexts, so that one request cannot starve the others.
A task that waits for another lends its slot meanwhile, for the other may need it; that of its name
it keeps, for a limit of one may be what keeps tasks of that name apart.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from deferred._task import TaskHandle

_PURGE = 64
"""How many settled tasks may lie in the queues: few enough to hold, many enough to let go of at once."""

__all__ = ["Limit", "Slots", "check_count"]


def check_count(value: object, what: str) -> int:
    """Return `value` as a whole number of at least 1.

    Raises:
        TypeError: It is no int.
        ValueError: It is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"{what} must be a whole number, not {value!r}"
        raise TypeError(message)
    if value < 1:
        message = f"{what} must be 1 or more, not {value}"
        raise ValueError(message)
    return value


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """How many tasks of one name may run and wait at a time; None for no limit of their own.

    Example:
        >>> Limit(running=4, pending=100)
        Limit(running=4, pending=100)
    """

    running: int | None = None
    pending: int | None = None

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        for what, value in (("running", self.running), ("pending", self.pending)):
            if value is not None:
                check_count(value, f"Limit({what}=...)")


class _Named:
    """What is known of the tasks of one limited name."""

    __slots__ = ("accepted", "limit", "parked", "running")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        self.accepted = 0  # not settled yet
        self.running = 0
        self.parked: deque[TaskHandle[Any]] = deque()  # next in turn, but for their name's limit

    @property
    def full(self) -> bool:
        return self.limit.running is not None and self.running >= self.limit.running

    @property
    def free(self) -> int:
        return sys.maxsize if self.limit.pending is None else self.limit.pending - self.accepted + self.running


class Slots:
    """The running slots of one supervisor, and the queue for them. Lives as long as it."""

    __slots__ = ("_dropped", "_named", "busy", "lent", "max_running", "named", "queues")

    def __init__(self, max_running: int, limits: Mapping[str, Limit]) -> None:
        self.max_running = max_running
        self.busy = 0
        self._dropped = 0
        self._named = {name: _Named(limit) for name, limit in limits.items()}
        self.named = bool(self._named)  # the hot path asks this first
        self.queues: dict[int, deque[TaskHandle[Any]]] = {}  # by context, in the order of their turns
        self.lent: dict[
            TaskHandle[Any], asyncio.Future[None] | None
        ] = {}  # by whom; what wakes one that is back in line

    def of(self, name: str) -> _Named | None:
        """Return what is known of the tasks of this name, if it is limited."""
        return self._named.get(name)

    def free(self, name: str) -> int:
        """Say how many more tasks of this name may wait."""
        named = self._named.get(name)
        return sys.maxsize if named is None else named.free

    def accept(self, task: TaskHandle[Any]) -> None:
        """Count a task that was registered; only needed where names are limited."""
        if (named := self._named.get(task.name)) is not None:
            named.accepted += 1

    def forget(self, task: TaskHandle[Any]) -> None:
        """Take back `accept`: the task has settled."""
        if (named := self._named.get(task.name)) is not None:
            named.accepted -= 1

    def take(self, task: TaskHandle[Any]) -> bool:
        """Take a slot for `task`, or queue it and say no."""
        if self.queues or self.busy >= self.max_running:
            self.queues.setdefault(id(task._unit), deque()).append(task)
            return False
        return self._take(task)

    def _take(self, task: TaskHandle[Any]) -> bool:
        if self.named and (named := self._named.get(task.name)) is not None:
            if named.full:
                named.parked.append(task)
                return False
            named.running += 1
        self.busy += 1
        return True

    def give(self, task: TaskHandle[Any]) -> None:
        """Give the slot of `task` back."""
        self.busy -= 1
        self._leave_name(task)

    def _leave_name(self, task: TaskHandle[Any]) -> None:
        if self.named and (named := self._named.get(task.name)) is not None:
            named.running -= 1
            self._unpark(named)

    def shuts_out(self, task: TaskHandle[Any], other: TaskHandle[Any]) -> bool:
        """Say whether `other` cannot start before `task` has ended: it has the one slot of their name."""
        if other._attempts or other.name != task.name:
            return False
        named = self._named.get(task.name)
        return named is not None and named.limit.running == 1

    def lend(self, task: TaskHandle[Any]) -> None:
        """Let others have the slot of `task`, which waits for the end of one of them."""
        task._slot = False
        self.busy -= 1
        self.lent[task] = None

    def regain(self, task: TaskHandle[Any]) -> asyncio.Future[None] | None:
        """Give `task` a slot again (None), or return what tells it that its turn has come."""
        if self.busy < self.max_running:
            self.insist(task)
            return None
        self.queues.setdefault(id(task._unit), deque()).appendleft(task)
        waiter = self.lent[task] = asyncio.get_running_loop().create_future()
        return waiter

    def insist(self, task: TaskHandle[Any]) -> None:
        """Give `task` a slot again, whether or not there is one."""
        self.busy += 1
        task._slot = True
        self._end_lending(task)

    def _end_lending(self, task: TaskHandle[Any]) -> None:
        waiter = self.lent.pop(task)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _unpark(self, named: _Named) -> None:
        """Give the next task of a limited name its turn again."""
        while named.parked:
            task = named.parked.popleft()
            if task._outcome is None:
                self.queues.setdefault(id(task._unit), deque()).appendleft(task)
                return

    def clear(self) -> None:
        """Forget who runs and who waits: they do so on a loop that is gone, or in another process."""
        self.busy = 0
        self.queues.clear()
        self.lent.clear()
        for named in self._named.values():
            named.clear()

    def drop(self, task: TaskHandle[Any]) -> None:
        """Note that a task which waited was settled; let go of such tasks now and then."""
        if task in self.lent:
            self._end_lending(task)
            self._leave_name(task)
        self._dropped += 1
        if self._dropped >= _PURGE:
            self._dropped = 0
            for turn, queue in tuple(self.queues.items()):
                kept = deque(task for task in queue if task._outcome is None)
                if kept:
                    self.queues[turn] = kept
                else:
                    del self.queues[turn]
            for named in self._named.values():
                named.parked = deque(task for task in named.parked if task._outcome is None)

    def next(self) -> TaskHandle[Any] | None:
        """Take a slot for whoever is next and return it; None when nobody can start now."""
        while self.queues and self.busy < self.max_running:
            turn, queue = next(iter(self.queues.items()))
            del self.queues[turn]
            task = queue.popleft()
            if queue:
                self.queues[turn] = queue  # to the end: the others' turn
            # Cancelled while it waited: its turn is the next one's.
            if task._outcome is not None or task._slot or self.lent.get(task, task) is None:
                if (named := self._named.get(task.name)) is not None:
                    self._unpark(named)
            elif task in self.lent:
                self.insist(task)
                return task
            elif self._take(task):
                return task
        return None
