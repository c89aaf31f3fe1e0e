"""Eager tasks for Python 3.11: the first step runs inside the call that makes the task."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import AbstractEventLoop
from asyncio.tasks import _enter_task, _leave_task  # what implementations of tasks use
from collections.abc import Coroutine, Generator
from contextvars import Context
from types import FrameType
from typing import Any

__all__ = ["Started", "eager_factory"]


@contextlib.contextmanager
def eager_factory(loop: AbstractEventLoop) -> Generator[None, None, None]:
    """Let the next task that `loop` makes run its first step at once."""
    before = loop.get_task_factory()

    def make(loop: AbstractEventLoop, coro: Any, *, context: Context | None = None) -> asyncio.Task[Any]:
        loop.set_task_factory(before)  # what the first step makes is made as ever
        return _start(loop, coro, context or Context())

    loop.set_task_factory(make)
    try:
        yield
    finally:
        loop.set_task_factory(before)


def _start(loop: AbstractEventLoop, coro: Coroutine[Any, Any, Any], context: Context) -> asyncio.Task[Any]:
    started = Started(coro)
    task: asyncio.Task[Any] = asyncio.Task(started, loop=loop, context=context)
    outer = asyncio.current_task(loop)
    if outer is not None:
        _leave_task(loop, outer)
    _enter_task(loop, task)
    try:
        context.run(started.step)
    finally:
        _leave_task(loop, task)
        if outer is not None:
            _enter_task(loop, outer)
    return task


class Started(Coroutine[Any, Any, Any]):
    """A coroutine whose first step is behind it; the task around it does not know. Lives as long as the task."""

    def __init__(self, coro: Coroutine[Any, Any, Any]) -> None:
        self._coro = coro
        self._yielded: Any = None
        self._raised: BaseException | None = None
        self._fresh = True

    @property
    def cr_frame(self) -> FrameType | None:
        """The frame of the coroutine itself, where others look for it."""
        return getattr(self._coro, "cr_frame", None)

    def step(self) -> None:
        """Run up to the first thing it waits for."""
        try:
            self._yielded = self._coro.send(None)
        except BaseException as end:  # noqa: BLE001  # StopIteration too: the task is told in its own first step
            self._raised = end

    def send(self, value: Any) -> Any:
        """Go on; the first time say what the first step said."""
        if not self._fresh:
            return self._coro.send(value)
        self._fresh = False
        if self._raised is not None:
            raise self._raised
        return self._yielded

    def throw(self, *error: Any) -> Any:
        """Raise inside, wherever it stands; nothing when the first step was the last."""
        self._fresh = False
        if self._raised is not None:
            raise self._raised
        return self._coro.throw(*error)

    def close(self) -> None:
        """Close it."""
        self._coro.close()

    def __await__(self) -> Any:
        """Be awaitable, as every coroutine is."""
        return self
