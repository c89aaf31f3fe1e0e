"""The records of one recorder: those that go on, those that are over, and their bounds."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from deferred._supervisor import Supervisor
from deferred._task import TaskHandle
from deferred.inspector._counts import Counts
from deferred.inspector._records import MOST_LINES, Ended, Line, Trace, weight
from deferred.inspector._stored import StoredWork

__all__ = ["Memory"]


class Memory:
    """What is remembered of the units of work of one supervisor. Lives as long as its inspector.

    Args:
        supervisor: Whose work it is.
        count: How many units of work are kept.
        size: About how many bytes they may take.
        age: Seconds after which they are forgotten.

    Attributes:
        source: Tells this memory from that of another process.
        change: How many changes there were; each record has the number of its last one, as far as
            somebody watched.
        size: About how many bytes those take that are over.
        removed: Changes that were removals, with the id of what was removed.
    """

    def __init__(self, supervisor: Supervisor, *, count: int, size: int, age: float) -> None:
        self.supervisor = supervisor
        self.counts = Counts(supervisor._launcher)
        self.source = secrets.token_hex(8)
        self.change = 0
        self.size: int = 0
        self.removed: deque[tuple[int, str]] = deque(maxlen=200)
        self._count, self._size, self._age = count, size, age
        self._room = size  # for those that are over; what goes on needs the rest
        self._share = max(size // 4, 1)  # the most that one of them may take
        self._last = 0  # the number of the latest record
        self._live: dict[Any, Trace] = {}
        self._done: deque[Trace] = deque()
        self._watchers = 0
        self.stored = StoredWork()
        self._jobs = self.stored.jobs  # asked for every task whether there are any
        self._inline: set[TaskHandle[Any]] = set()  # those that run in a handler; known while somebody watches

    def _note(self, trace: Trace) -> None:
        """Let those who watch see that something of `trace` has changed."""
        self.change += 1
        trace.change = self.change
        if trace.settled is not None:  # stored work has gone on; they are kept in the order of their changes
            with contextlib.suppress(ValueError):  # it may have been forgotten
                self._done.remove(trace)
                self._done.append(trace)

    def _of(self, unit: Any, at: float) -> Trace:
        """Return the record of a unit of work; one that nobody has opened (``background``) begins now."""
        trace = self._live.get(unit) or self.stored.units.get(unit)
        if trace is None:
            self._last += 1
            trace = self._live[unit] = Trace(unit, self._last, at)
            self._note(trace)
        return trace

    def _adopt(self, task: Any) -> tuple[Trace, Ended] | None:
        """Return the record of the request that stored this delivery's job, which then has all of it; and the row."""
        found = self.stored.find(task)
        if found is not None and task._unit not in self.stored.units:
            trace, _ = found
            own = self._live.get(task._unit)
            if own is not None:
                before = trace.weight
                trace.take(own)
                self.ignore(task._unit)
                self._grown(trace, before)
            self.stored.units[task._unit] = trace
        return found

    def _go_on(self, trace: Trace, at: float, before: int) -> None:
        """Let a request be over when the last of its stored work is."""
        if trace.settled is not None:
            trace.settled = max(trace.settled, at)
        self._grown(trace, before)

    def add_line(self, unit: Any, line: Line) -> None:
        """Keep a line of the log; called in whatever thread wrote it."""
        trace = self._live.get(unit) or self.stored.units.get(unit)
        if trace is None:
            return
        before = trace.weight
        lines = trace.lines = trace.lines or []
        lines.append(line)
        trace.size += 200 + 2 * len(line.text)
        if len(lines) > MOST_LINES:
            trace.size -= 200 + 2 * len(lines.pop(0).text)
        self._grown(trace, before)

    # -- bounds ------------------------------------------------------------------------------

    def _grown(self, trace: Trace, before: int) -> None:
        """Note that a record takes more than `before`; none takes the room of all."""
        if trace.size > self._share:
            trace.shrink(self._share)
        if trace.settled is not None:
            self.size += trace.weight - before
        self._note(trace)

    def _weighed(self, trace: Trace, ended: Ended) -> None:
        """Count what a task takes, before it is kept."""
        trace.size += weight(ended)
        if trace.size > self._share:
            trace.shrink(self._share)

    def weigh(self) -> None:
        """Let what goes on have its room: those that are over make it, and if that is not enough, details go."""
        live = tuple(self._live.values())
        self._room = self._size - sum(trace.size for trace in live)
        if self.size > self._room:
            self._make_room()
        if self._room < 0:
            for trace in live:
                trace.shrink(self._size // len(live))

    def _make_room(self) -> None:
        while self._done and (len(self._done) > self._count or self.size > self._room):
            gone = self._done.popleft()
            self.size -= gone.weight
            if self._jobs:
                self.stored.forget(gone)
        while len(self._live) > self._count:  # more at a time than are kept: the oldest are let go of
            del self._live[next(iter(self._live))]

    def look(self) -> None:
        """Forget what is older than `age`, and find what nobody has told of."""
        self.forget_old()
        self.unfinished()

    def touch(self) -> None:
        """Let those who watch see all that has not settled anew."""
        self.unfinished()
        for trace in {*self._live.values(), *self.stored.units.values()}:
            self._note(trace)

    def forget_old(self) -> None:
        """Forget what is older than `age`."""
        oldest = self.supervisor._launcher.now() - self._age
        while self._done and (self._done[0].settled or 0.0) < oldest:
            self._let_go(self._done.popleft())

    def _let_go(self, trace: Trace) -> None:
        self.size -= trace.weight
        if self._jobs:
            self.stored.forget(trace)

    def forget(self, wanted: Callable[[Trace], bool]) -> int:
        """Forget the settled units of work that `wanted` says yes to; return how many."""
        gone = [trace for trace in self._done if wanted(trace)]
        for trace in gone:
            self._done.remove(trace)
            self._let_go(trace)
            self._remove(trace)
        return len(gone)

    def ignore(self, unit: Any) -> None:
        """Record nothing of a unit of work that is the inspector's own."""
        trace = self._live.pop(unit, None)
        if trace is not None:
            self.counts.requests -= 1
            if self._watchers:
                self._remove(trace)

    def _remove(self, trace: Trace) -> None:
        self.change += 1
        self.removed.append((self.change, trace.id))

    def traces(self, since: int = -1) -> list[Trace]:
        """Return the records that have changed since, all unless told; the latest first."""
        found = [trace for trace in tuple(self._live.values()) if trace.change > since]
        for trace in reversed(tuple(self._done)):
            if trace.change <= since:
                break
            found.append(trace)
        found.sort(key=lambda trace: -trace.number)
        return found

    def find(self, key: str) -> Trace | None:
        """Return the record of the unit of work with this id."""
        return next((trace for trace in self.traces() if trace.id == key), None)

    def unfinished(self) -> dict[Trace, list[TaskHandle[Any]]]:
        """Return the tasks that have not ended, by the record that they belong to."""
        launcher = self.supervisor._launcher
        units: dict[Any, list[TaskHandle[Any]]] = {}
        for task in itertools.chain(tuple(launcher.tasks), tuple(launcher.detached), tuple(self._inline)):
            if task._outcome is None:
                if self._jobs:
                    self._adopt(task)
                units.setdefault(task._unit, []).append(task)
        found: dict[Trace, list[TaskHandle[Any]]] = {}
        for unit, tasks in units.items():
            found.setdefault(self._of(unit, min(task._created for task in tasks)), []).extend(tasks)
        return found

    def epoch(self) -> float:
        """Return the time of day at which the loop's clock stood at zero: seconds since the epoch."""
        return time.time() - self.supervisor._launcher.now()
