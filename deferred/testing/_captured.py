"""Work that was recorded instead of run, and can be run on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from deferred._call import claimed, close_refused
from deferred._events import Execution
from deferred._launch import Launcher
from deferred._task import TaskHandle
from deferred.testing._waiting import blocking, elsewhere

__all__ = ["Captured"]

Held = tuple[TaskHandle[Any], Launcher]
Asked = Callable[..., Any] | str | None


class Captured(Sequence[TaskHandle[Any]]):
    """The tasks that mode ``"capture"`` has recorded instead of run. Lives as long as its kit.

    They stay pending, no drain waits for them, and what is never run is dropped at the end of
    the test.

    Args:
        asks_for: Says whether a task is one of those that `run` was asked for.
        finish: Waits for tasks that were started and raises what they raised.
    """

    def __init__(
        self,
        asks_for: Callable[[Asked, TaskHandle[Any]], bool],
        finish: Callable[[float | None], Any],
    ) -> None:
        self._held: list[Held] = []
        self._freed: set[TaskHandle[Any]] = set()
        self._asks_for = asks_for
        self._finish = finish

    @overload
    def __getitem__(self, index: int) -> TaskHandle[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TaskHandle[Any]]: ...
    def __getitem__(self, index: int | slice) -> TaskHandle[Any] | Sequence[TaskHandle[Any]]:
        """Return a captured task, or several."""
        return [task for task, _ in self._held][index]

    def __len__(self) -> int:
        """Return how many tasks wait to be run."""
        return len(self._held)

    def __iter__(self) -> Iterator[TaskHandle[Any]]:
        """Give the captured tasks, in the order they would have started."""
        return iter([task for task, _ in self._held])

    def _take(self, task: TaskHandle[Any], launcher: Launcher) -> bool:
        """Keep a task that is about to start; no drain waits for it then. One that `run` has freed passes."""
        if task in self._freed:
            return False
        if task._tracked:
            task._tracked = False
            launcher.tasks.discard(task)
            unit: Any = task._unit
            unit._pending -= 1
        launcher.detached.discard(task)
        launcher.count_room()
        self._held.append((task, launcher))
        return True

    async def run(self, func: Asked = None, *, timeout: float | None = None) -> None:
        """Run what was captured, and what that registers in turn, until nothing is left.

        Args:
            func: Run only this function's tasks, or those of this name; None for all.
            timeout: Seconds to wait for each round; the kit's own when None.

        Raises:
            BaseException: What the work has raised: one error as itself, several as a group.
        """
        while batch := self._pick(func):
            for launcher in dict.fromkeys(launcher for _, launcher in batch):
                mine = [task for task, its in batch if its is launcher]

                async def start(launcher: Launcher = launcher, mine: list[TaskHandle[Any]] = mine) -> None:
                    self._start(launcher, mine)

                await elsewhere(launcher, start)
            await self._finish(timeout)

    def run_sync(self, func: Asked = None, *, timeout: float | None = None) -> None:
        """Do as `run`, from a synchronous test: on the loop of a test client's thread, or on one of its own.

        Args:
            func: Run only this function's tasks, or those of this name; None for all.
            timeout: Seconds to wait for each round; the kit's own when None.

        Raises:
            BaseException: What the work has raised: one error as itself, several as a group.
        """
        loops = dict.fromkeys(launcher.loop for _, launcher in self._held)
        blocking(next(iter(loops), None), lambda: self.run(func, timeout=timeout))

    def _pick(self, func: Asked) -> list[Held]:
        batch = [held for held in self._held if func is None or self._asks_for(func, held[0])]
        self._held = [held for held in self._held if held not in batch]
        return [held for held in batch if not held[0].done()]

    def _start(self, launcher: Launcher, tasks: list[TaskHandle[Any]]) -> None:
        if launcher.loop is not asyncio.get_running_loop():
            launcher.bind(asyncio.get_running_loop())  # the loop of the request is over
        for task in tasks:
            self._freed.add(task)
            if task._execution is Execution.FIRE_AND_FORGET:
                launcher.detached.add(task)
                launcher.count_room()
            else:
                task._tracked = True
                launcher.tasks.add(task)
                unit: Any = task._unit
                unit._pending += 1
            launcher.launch(task, eager=False)

    def drop(self) -> None:
        """Let go of what was never run; a coroutine among it is closed."""
        for task, _ in self._held:
            close_refused(task._work)
            if asyncio.iscoroutine(task._work):
                claimed.discard(task._work)
        self._held.clear()
