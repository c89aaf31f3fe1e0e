"""A supervisor's launcher under the direction of a test.

Rules of this file: nothing in the hot path of the core knows of tests. A launcher that is
watched is given another class, with the same attributes, for as long as the test; the class
overrides where a task starts, and asks the kit that was installed last what is to be done.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import inspect
import sys
from asyncio import _get_running_loop as running_loop
from collections.abc import Coroutine
from typing import Any, Literal, TypeAlias

from deferred._call import Kind
from deferred._events import Event
from deferred._launch import Launcher
from deferred._options import CallNext
from deferred._task import TaskHandle
from deferred._unit import UnitOfWork
from deferred.exceptions import EventLoopError
from deferred.testing._clock import BackoffClock, base_of
from deferred.testing._eager import eager_factory

__all__ = ["Conductor", "Mode", "conductors_of", "divert", "undivert"]

Mode: TypeAlias = Literal["run", "inline", "capture"]

_EAGER = sys.version_info >= (3, 12)


class Conductor(abc.ABC):
    """The hook that directs the launchers it is installed on. Lives as long as a kit."""

    clock: BackoffClock

    @property
    @abc.abstractmethod
    def mode(self) -> Mode:
        """What becomes of work that has not started."""

    @abc.abstractmethod
    def __call__(self, event: Event) -> None:
        """Note what happened."""

    @abc.abstractmethod
    def _hold(self, task: TaskHandle[Any], launcher: Launcher) -> bool:
        """Take a task that is about to start, and say True; False lets it start."""

    @abc.abstractmethod
    async def _around(self, task: TaskHandle[Any], call_next: CallNext) -> Any:
        """Make an attempt of a task: a middleware."""


def conductors_of(launcher: Launcher) -> list[Conductor]:
    """Return those who direct `launcher`; the last one decides."""
    return [hook for hook in launcher.hooks._hooks if isinstance(hook, Conductor)]


def divert(launcher: Launcher, conductor: Conductor) -> None:
    """Put `launcher` under the direction of `conductor`."""
    launcher.hooks.add(conductor)
    launcher.look()
    launcher.__class__ = Diverted
    launcher.plain = False  # every task takes the way through launch()
    conductor.clock._drive(launcher)


def undivert(launcher: Launcher, conductor: Conductor) -> None:
    """Take `conductor` off; the one before it directs again, or nobody."""
    launcher.hooks.remove(conductor)
    launcher.look()
    before = conductors_of(launcher)
    if before:
        before[-1].clock._drive(launcher)
        return
    launcher.__class__ = Launcher
    launcher.plain = launcher.options.plain and launcher.task_scope is None
    launcher.now = base_of(launcher)


class Diverted(Launcher):
    """A launcher that asks a conductor; the class of one for as long as it is watched."""

    __slots__ = ()

    def _conductor(self) -> Conductor:
        return conductors_of(self)[-1]

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Work on `loop`, by the conductor's clock."""
        super().bind(loop)
        self._conductor().clock._drive(self)

    def meet(self, loop: asyncio.AbstractEventLoop | None, work: object, /) -> None:
        """Bind to `loop`, or refuse to register `work` there."""
        try:
            super().meet(loop, work)
        except EventLoopError as error:
            if running_loop() is not None:
                raise
            message = f"{error}. A synchronous test has one inside `with create_context() as ctx:`"
            raise EventLoopError(message) from None

    def release(self, context: UnitOfWork, /) -> None:
        """Launch what has waited in `context`: without a turn of the loop when it runs inline, or is captured."""
        if self._conductor().mode == "run" or running_loop() is not self.loop:
            super().release(context)
            return
        waiting, context._waiting = context._waiting or (), None
        for task in waiting:
            if task._outcome is None:
                self._launch_decided(task)

    def launch(self, task: TaskHandle[Any], /, *, eager: bool) -> None:
        """Start `task`, or hand it to the conductor."""
        if task._outcome is not None:
            return
        conductor = self._conductor()
        if conductor._hold(task, self):
            return
        self._prepare(task)
        super().launch(task, eager=eager or conductor.mode == "inline")

    def inline(self, task: TaskHandle[Any], /) -> Coroutine[Any, Any, None]:
        """Run a sequential step; it can be made to fail, but is never held."""
        self._prepare(task)
        return super().inline(task)

    def _prepare(self, task: TaskHandle[Any]) -> None:
        conductors = conductors_of(self)
        _ = task.name  # kept, whatever is put around the function
        task._options = task._options.overlay(middleware=[each._around for each in conductors])
        if conductors[-1].mode == "inline" and task._kind is Kind.SYNC:
            task._kind, task._work = Kind.ASYNC, _on_the_loop(task._work)

    def _start(self, task: TaskHandle[Any], eager: bool) -> None:  # noqa: FBT001  # as the core's
        if _EAGER or not eager or self.loop is None or self._conductor().mode != "inline":
            super()._start(task, eager)
            return
        with eager_factory(self.loop):
            super()._start(task, eager)


def _on_the_loop(func: Any) -> Any:
    """Return a plain function as one that runs on the event loop, where a test can see it end."""

    @functools.wraps(func, updated=())
    async def call(*args: Any, **kwargs: Any) -> Any:
        value = func(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    return call
