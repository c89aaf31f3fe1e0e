"""What the fault tests share: turns of the loop, a listener, work that misbehaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deferred import Event, Supervisor, TaskFailed, TaskHandle, TaskState
from deferred._call import claimed

TURNS = 10_000
SECONDS = 30.0


class BoomError(Exception):
    """What failing work raises."""


class BareError(BaseException):
    """An error that is no `Exception`."""


async def turns(count: int) -> None:
    """Let the loop make so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until this is true, not for ever: what a thread does takes time, and not turns."""
    begun, count = time.monotonic(), 0
    while not condition():
        if count >= TURNS and time.monotonic() - begun > SECONDS:
            raise AssertionError("it did not happen")
        count += 1
        await asyncio.sleep(0)


async def idle(supervisor: Supervisor) -> None:
    """Let the loop turn until nothing waits or runs."""

    def nothing() -> bool:
        stats = supervisor.stats()
        return stats.pending == stats.running == 0

    await until(nothing)


async def boom() -> None:
    """Fail."""
    raise BoomError("boom")


async def fine(value: Any = "fine") -> Any:
    """Succeed after a turn of the loop."""
    await asyncio.sleep(0)
    return value


async def forever() -> None:
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()


class Told:
    """A hook that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Note it."""
        self.seen.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        """Return the events of this class."""
        return [event for event in self.seen if isinstance(event, kind)]

    @property
    def errors(self) -> list[BaseException]:
        """The final failures."""
        return [event.error for event in self.of(TaskFailed)]


def ended(supervisor: Supervisor) -> int:
    """Return how many tasks have reached a terminal state."""
    stats = supervisor.stats()
    return stats.succeeded + stats.failed + stats.cancelled + stats.discarded + stats.abandoned


def nothing_left(supervisor: Supervisor) -> bool:
    """Say whether nothing waits, runs, is kept or holds a slot, looked at from inside too."""
    stats, launcher = supervisor.stats(), supervisor._launcher
    return (
        stats.pending == stats.running == 0
        and not launcher.tasks
        and not launcher.detached
        and not claimed
        and not launcher.slots.busy
        and not any(task._outcome is None for queue in launcher.slots.queues.values() for task in queue)
    )


@contextmanager
def loop_errors() -> Iterator[list[dict[str, Any]]]:
    """Collect what would go to the running loop's exception handler: nothing of ours may."""
    loop = asyncio.get_running_loop()
    found: list[dict[str, Any]] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: found.append(context))
    try:
        yield found
    finally:
        loop.set_exception_handler(before)


async def settled(*handles: TaskHandle[Any]) -> list[TaskState]:
    """Let the loop turn until these have ended; return their states."""
    await until(lambda: all(handle.done() for handle in handles))
    return [handle.state for handle in handles]


async def outcome_of(waiting: Awaitable[Any]) -> Any:
    """Return what this returns, or the exception it raises."""
    try:
        return await waiting
    except BaseException as error:  # noqa: BLE001  # the test looks at it
        return error
