"""A clock that jumps over the waits between attempts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from deferred._launch import Launcher
from deferred._task import Clock, TaskHandle

__all__ = ["BackoffClock", "base_of"]


class BackoffClock:
    """The time of a test: real, but for the waits between attempts, which take none.

    Lives as long as its kit. A policy's total time and a drain's deadline count what was jumped
    over, so that a task is exhausted after as many attempts as it would be in the end.

    Attributes:
        delays: The waits in seconds, in the order they began; jumped over or not.
        ahead: How many seconds it is ahead of the real time.
    """

    def __init__(self, *, skips: bool) -> None:
        self._skips = skips
        self.delays: list[float] = []
        self.ahead: float = 0.0

    def _drive(self, launcher: Launcher) -> None:
        """Have `launcher` read this clock."""
        launcher.now = self._over(base_of(launcher))

    def _over(self, base: Clock) -> Clock:
        def now() -> float:
            return base() + self.ahead

        return now

    def _note(self, task: TaskHandle[Any], launcher: Launcher, delay: float) -> None:
        """Note a wait that is about to begin; end it on the next turn of the loop."""
        self.delays.append(delay)
        if self._skips:
            asyncio.get_running_loop().call_soon(self._skip, task, launcher)

    def _skip(self, task: TaskHandle[Any], launcher: Launcher) -> None:
        if task._backoff is not None and not task._backoff.done():
            self.ahead += max(0.0, task._retry_at - launcher.now())
            task._backoff.set_result(True)


def base_of(launcher: Launcher) -> Clock:
    """Return the clock that a launcher has of itself: its loop's."""
    loop = launcher.loop
    return time.monotonic if loop is None or type(loop).time is asyncio.BaseEventLoop.time else loop.time
