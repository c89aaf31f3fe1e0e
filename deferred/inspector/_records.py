"""What the recorder keeps: one record a unit of work, one a task that has ended."""

from __future__ import annotations

from types import CodeType
from typing import Any

import msgspec

from deferred._call import site_of
from deferred._events import Execution, Outcome
from deferred._stores import fast_stores
from deferred._task import new_id
from deferred._unit import UnitOfWork
from deferred.inspector._errors import ErrorRecord

__all__ = ["LONG", "Arguments", "Attempt", "Ended", "Line", "Step", "Trace"]

MOST_TASKS = 200
"""How many ended tasks of one unit of work are kept; a websocket may see any number."""
MOST_STEPS = 100
MOST_LINES = 200
LONG = 300
"""Characters of a name or a label that are kept as they come; longer ones are cut, and weigh."""
_LONGEST = 1400  # more than is ever shown, so that a secret at the end is still seen whole


class Attempt(msgspec.Struct, frozen=True):
    """An attempt that failed and was followed by a wait; times of the loop's clock."""

    started: float
    ended: float
    error: ErrorRecord
    delay: float


class Step(msgspec.Struct, frozen=True):
    """A named part of the unit of work."""

    name: str
    started: float
    ended: float
    error: ErrorRecord | None


class Line(msgspec.Struct, frozen=True):
    """A line of the log; `task` is the id of the task that wrote it, None for the request's own."""

    at: float
    level: str
    logger: str
    text: str
    task: str | None


class Arguments(msgspec.Struct, frozen=True):
    """The arguments of a task: as they were, where they are plain; else what they looked like."""

    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shown: list[tuple[str, str]] | None = None


@fast_stores
class Ended(msgspec.Struct, eq=False, gc=False):
    """A task that has ended, was refused, or was stored for later. Lives as long as the record of its unit of work."""

    name: str
    code: CodeType | None  # of the function that registered it
    instruction: int
    created: float
    started: float  # its last attempt; 0 if there was none
    ended: float
    outcome: Outcome
    attempts: int
    execution: Execution
    _id: str | None
    arguments: Arguments | None = None
    failures: list[Attempt] | None = None
    error: ErrorRecord | None = None
    word: str = ""  # what is shown instead of the outcome: "rejected", "enqueued"

    @property
    def id(self) -> str:
        """The task's id; made when somebody asks first, as that of the task itself is."""
        return self._id or new_id(self)

    @property
    def site(self) -> str:
        """The ``file:line`` that registered it."""
        return site_of(self.code, self.instruction)


@fast_stores
class Trace(msgspec.Struct, eq=False):
    """One unit of work. Lives until the recorder needs its room.

    Attributes:
        unit: The context itself, until it has settled.
        number: Counts the units of work in the order of their beginning.
        change: The number of the last change, counted over all of them.
        omitted: How many ended tasks, and steps, are kept no longer.
        size: About how many bytes it takes, beyond what every one takes.
        loose: Whether it has settled but for tasks that nobody waits for.
    """

    unit: UnitOfWork | None
    number: int
    opened: float
    change: int = 0
    closed: float | None = None
    settled: float | None = None
    label: str = ""
    status: object = None
    execution: Execution = Execution.DEFERRED
    _id: str | None = None
    error: ErrorRecord | None = None
    steps: list[Step] | None = None
    ended: list[Ended] | None = None
    lines: list[Line] | None = None
    omitted: int = 0
    size: int = 0
    loose: bool = False

    @property
    def id(self) -> str:
        """The id of the unit of work."""
        if self.unit is not None:
            return self.unit.id
        return self._id or new_id(self)

    def add(self, ended: Ended) -> None:
        """Keep a task that has ended."""
        if self.ended is None:
            self.ended = [ended]
            return
        self.ended.append(ended)
        if len(self.ended) > MOST_TASKS:
            self.thin_out()

    def shrink(self, most: int) -> None:
        """Let go of the oldest details until the rest takes no more than about `most` bytes."""
        while self.size > most and self.lines:
            half = len(self.lines) // 2 + 1
            self.size -= sum(200 + 2 * len(line.text) for line in self.lines[:half])
            self.lines = self.lines[half:] or None
        while self.size > most and self.ended is not None and len(self.ended) > 1:
            self.thin_out()

    def thin_out(self) -> None:
        """Let go of half of the tasks: of those that succeeded where there are enough, the oldest first."""
        ended = self.ended or []
        happy = [place for place, known in enumerate(ended) if known.outcome is Outcome.SUCCEEDED]
        half = len(ended) // 2
        gone = set(happy[:half] if len(happy) >= half else range(half))
        self.size -= sum(weight(ended[place]) for place in gone)
        self.omitted += len(gone)
        self.ended = [known for place, known in enumerate(ended) if place not in gone]

    def take(self, other: Trace) -> None:
        """Take what was recorded of another unit of work that turns out to be a part of this one."""
        self.steps = [*(self.steps or ()), *(other.steps or ())] or None
        self.lines = [*(self.lines or ()), *(other.lines or ())][-MOST_LINES:] or None
        for ended in other.ended or ():
            self.add(ended)
        self.size += other.size

    def settle(self, unit: UnitOfWork, at: float) -> None:
        """Let go of the context: what is kept of it is copied."""
        self.settled = at
        label = unit.label
        if len(label) > LONG:
            label = label[:_LONGEST]
            self.size += 2 * len(label)
        self.label = label
        self.status = unit.status
        self.execution = unit.route or Execution.DEFERRED
        self._id = unit._id
        self.unit = None

    @property
    def weight(self) -> int:
        """About how many bytes it takes."""
        return 600 + self.size + (300 * len(self.ended) if self.ended is not None else 0)


def weight(ended: Ended) -> int:
    """Return about how many bytes a task takes beyond what every one takes."""
    total = ended.error.size if ended.error is not None else 0
    if ended.failures is not None:
        total += sum(100 + failure.error.size for failure in ended.failures)
    if ended.arguments is not None:
        total += 200 + sum(2 * len(text) for _, text in ended.arguments.shown or ())
        total += sum(2 * len(value) for value in ended.arguments.args if isinstance(value, str))
        total += sum(2 * len(value) for value in ended.arguments.kwargs.values() if isinstance(value, str))
    return total
