"""What a test sees of deferred work, and how it decides what becomes of it."""

from __future__ import annotations

import weakref
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar, cast

from deferred._call import name_of
from deferred._events import Event, TaskDeferred, TaskFailed, TaskRetrying
from deferred._launch import Launcher
from deferred._options import CallNext
from deferred._process import alive
from deferred._retry import seconds
from deferred._settings import check_choice
from deferred._supervisor import Supervisor, _newcomers
from deferred._task import TaskHandle, Unit
from deferred._unit import UnitOfWork
from deferred.testing._captured import Asked, Captured
from deferred.testing._client import open_aiohttp_client, open_client
from deferred.testing._clock import BackoffClock
from deferred.testing._context import TestContext, make_test_context
from deferred.testing._diversion import Conductor, Mode, divert, undivert
from deferred.testing._faults import Fault, strike
from deferred.testing._findings import Findings
from deferred.testing._matching import Registration, asked
from deferred.testing._recorder import Assertions, Recorder
from deferred.testing._waiting import blocking, check_no_loop, cut, elsewhere, settled, strays_of

if TYPE_CHECKING:  # httpx is loaded when a client is asked for
    from deferred.testing._http import Client

__all__ = ["Backoff", "Kit"]

E = TypeVar("E", bound=Event)
Backoff: TypeAlias = Literal["skip", "wait"]
Injected: TypeAlias = "Callable[..., Any] | str"

TIMEOUT = 5.0
"""Seconds: longer than the work of a test, shorter than anybody's patience."""


class Kit(Assertions, Conductor):
    """What a test sees of deferred work, and how it decides what becomes of it.

    Lives as long as a test: the pytest fixture ``deferred`` is one. As a context manager it watches
    every supervisor of the process, those made meanwhile included; `watch` adds one by hand.

    Args:
        mode: ``"run"``: work runs as ever. ``"inline"``: it runs inside the call that closes its
            context; what needs no waiting is over when that call returns, and synchronous
            functions run there too, not in threads. ``"capture"``: it is recorded, not run;
            `captured` runs it on demand. May be set anew at any time, for work that has not
            started.
        backoff: ``"skip"``: the waits between attempts take no time (`delays` has them all the
            same). ``"wait"``: they take their time.
        timeout: Seconds that waiting for work may take.

    Raises:
        ValueError: An argument is none of these.

    Example:
        >>> import asyncio
        >>> from deferred import Supervisor
        >>> async def main():
        ...     supervisor = Supervisor()
        ...     async with supervisor:
        ...         with Kit(mode="capture") as kit, supervisor.context() as ctx:
        ...             ctx.defer(asyncio.sleep, 3600)
        ...         kit.assert_deferred(asyncio.sleep, 3600)
        >>> asyncio.run(main())
    """

    def __init__(self, mode: Mode = "run", *, backoff: Backoff = "skip", timeout: float = TIMEOUT) -> None:
        self.mode = mode
        self.timeout: float = seconds(timeout, "timeout")
        self.recorder: Recorder = Recorder()
        self.clock: BackoffClock = BackoffClock(skips=check_choice(backoff, Backoff, "backoff") == "skip")
        self.captured: Captured = Captured(self._asks_for, self.wait)
        self.findings: Findings = Findings()
        self._faults: list[Fault] = []
        self._watched: list[Supervisor] = []
        self._older: set[TaskHandle[Any]] = set()
        self._known: dict[TaskHandle[Any], Registration] = {}
        self._strays: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def mode(self) -> Mode:
        """What becomes of work that has not started: ``"run"``, ``"inline"`` or ``"capture"``."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode: Mode = cast("Mode", check_choice(mode, Mode, "mode"))

    # -- whom it watches ----------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Watch every supervisor, until the block is left."""
        for supervisor in tuple(alive):
            self.watch(supervisor)
        _newcomers.append(self.watch)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        _newcomers.remove(self.watch)
        self.release()

    def watch(self, supervisor: Supervisor, *, from_now: bool = True) -> None:
        """Watch `supervisor`, until `release`.

        Args:
            supervisor: Whom to watch.
            from_now: Whether what it has accepted before is none of this test's.

        Raises:
            TypeError: It is no supervisor.
        """
        if not isinstance(supervisor, Supervisor):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            message = f"a kit watches supervisors, not {supervisor!r}: an app's is the one its middleware was given"
            raise TypeError(message)
        launcher = supervisor._launcher
        if supervisor not in self._watched:
            self._watched.append(supervisor)
            if from_now:
                self._older.update(launcher.tasks, launcher.detached)
            divert(launcher, self)

    def release(self) -> None:
        """Watch nobody any more; what was captured and not run is dropped."""
        self.captured.drop()
        for supervisor in self._watched:
            undivert(supervisor._launcher, self)
        self._watched.clear()

    # -- what it is told ----------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        """Note what happened: a kit is a hook."""
        task: Any = getattr(event, "task", None)
        if task in self._older:
            return
        self.recorder(event)
        self.findings.note(event)
        if isinstance(event, TaskDeferred):
            self._known.setdefault(task, Registration.of(task))
        elif isinstance(event, TaskRetrying):
            self.clock._note(task, task._unit._host, event.delay)

    def _hold(self, task: TaskHandle[Any], launcher: Launcher) -> bool:
        """Take a task that is about to start, when work is captured."""
        return self.mode == "capture" and task not in self._older and self.captured._take(task, launcher)

    async def _around(self, task: TaskHandle[Any], call_next: CallNext) -> Any:
        """Make an attempt, or let it go wrong as the test asked: a middleware."""
        return await strike(self._faults, self._known.get(task), call_next)

    # -- what happened --------------------------------------------------------------------------

    @property
    def registrations(self) -> Sequence[Registration]:
        """Everything that was registered, in order; what threads have registered up to now included."""
        for launcher in self._launchers():
            # What threads have registered is told of on the loop's next turn.
            for task in sorted(self._left(launcher, None), key=lambda task: task._created):
                self._known.setdefault(task, Registration.of(task))
        return list(self._known.values())

    @property
    def events(self) -> list[Event]:
        """Every event, in order."""
        return self.recorder.events

    def of(self, *kinds: type[E]) -> list[E]:
        """Return the events of these classes, in order."""
        return self.recorder.of(*kinds)

    @property
    def errors(self) -> list[BaseException]:
        """The error of every task that failed for good, in order."""
        return [event.error for event in self.of(TaskFailed)]

    @property
    def delays(self) -> list[float]:
        """The waits between attempts in seconds, in the order they began."""
        return self.clock.delays

    def _asks_for(self, func: Asked, task: TaskHandle[Any]) -> bool:
        return asked(func).asks_for(self._known.get(task) or Registration.of(task))

    # -- what goes wrong --------------------------------------------------------------------------

    def fail(
        self,
        func: Injected,
        /,
        error: BaseException | type[BaseException],
        *,
        times: int | None = None,
    ) -> Fault:
        """Let attempts of `func` raise `error` instead of running.

        Args:
            func: The function, or the name of the task.
            error: What to raise: an exception, or its class.
            times: How many attempts fail before the others succeed; None for all.

        Returns:
            The fault; its ``struck`` counts the attempts it has hit. That such a task fails
            for good is expected: it does not fail the test.
        """
        return self._inject(func, error=error, times=times)

    def hang(self, func: Injected, /, *, times: int | None = None) -> Fault:
        """Let attempts of `func` wait for what never comes, until they are cancelled.

        Args:
            func: The function, or the name of the task.
            times: How many attempts hang; None for all.
        """
        return self._inject(func, times=times)

    def slow(self, func: Injected, /, delay: float, *, times: int | None = None) -> Fault:
        """Let attempts of `func` begin late.

        Args:
            func: The function, or the name of the task.
            delay: How late, in (real) seconds.
            times: How many attempts; None for all.
        """
        return self._inject(func, delay=seconds(delay, "delay", zero=True), times=times)

    def _inject(self, func: Injected, **what: Any) -> Fault:
        fault = Fault(asked(func), self.findings.injected, **what)
        self._faults.append(fault)
        return fault

    def allow_errors(self, *kinds: type[BaseException]) -> None:
        """Accept that tasks fail for good with errors of these classes; with any, when none is given.

        Raises:
            TypeError: One of them is no class of exceptions.
        """
        for kind in cast("tuple[Any, ...]", kinds):  # callers may be untyped
            if not isinstance(kind, type) or not issubclass(kind, BaseException):
                message = f"errors are allowed by their classes, such as `ValueError`, not by {kind!r}"
                raise TypeError(message)
        self.findings.allowed = (*self.findings.allowed, *(kinds or (BaseException,)))

    def allow_leftovers(self) -> None:
        """Accept that work does not come to its end during the test."""
        self.findings.leftovers_allowed = True

    # -- waiting ----------------------------------------------------------------------------------

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until no work is left, what it registers included; then raise what it has raised.

        What is not done in time is cancelled, and a `UnfinishedWorkWarning` names it.

        Args:
            timeout: Seconds to wait at the most; the kit's own when None.

        Raises:
            BaseException: One error as itself, the very object; several as a group. Errors that
                somebody has raised before (by ``await handle``), that were injected, or that are
                allowed are not raised.
        """
        __tracebackhide__ = True
        limit = self.timeout if timeout is None else seconds(timeout, "timeout", zero=True)
        await self.settle(limit)
        self.findings.warn(None, limit, stacklevel=2)
        self.findings.raise_errors()

    def wait_sync(self, timeout: float | None = None) -> None:
        """Do as `wait`, from a synchronous test: for work on the loop of a test client's thread.

        Args:
            timeout: Seconds to wait at the most; the kit's own when None.

        Raises:
            BaseException: As `wait`.
            RuntimeError: An event loop runs here.
        """
        __tracebackhide__ = True
        limit = self.timeout if timeout is None else seconds(timeout, "timeout", zero=True)
        check_no_loop()
        self.settle_sync(limit)
        self.findings.warn(None, limit, stacklevel=2)
        self.findings.raise_errors()

    async def settle(self, timeout: float, unit: Unit | None = None, *, held: bool = True) -> None:
        """Wait for the work of one context or of all, cut it short at the timeout, and tell nobody.

        Args:
            timeout: Seconds to wait at the most.
            unit: The context; None for all.
            held: Whether to wait as well for what waits until its context, still open, is closed.
        """
        for launcher in self._launchers():
            left = self._left(launcher, unit, held=held)
            if left and launcher.loop is not None and launcher.loop.is_running():
                await elsewhere(launcher, self._settling(launcher, timeout, unit, held=held))
            elif left and launcher.loop is not None and launcher.loop.is_closed():
                self._give_up(left)
        for launcher in self._launchers():
            self._look_for_strays(launcher)

    def settle_sync(self, timeout: float, *, held: bool = True) -> None:
        """Wait for all work from outside its loop; note what can never end. The arguments are those of `settle`."""
        for launcher in self._launchers():
            loop = launcher.loop
            if loop is None or loop.is_closed():
                self._give_up(self._left(launcher, None))
            elif self._left(launcher, None, held=held):
                blocking(loop, self._settling(launcher, timeout, None, held=held))

    def _give_up(self, tasks: list[TaskHandle[Any]]) -> None:
        """Note tasks that can never end, once."""
        self.findings.note_unfinished(tasks)
        self._older.update(tasks)

    def _launchers(self) -> list[Launcher]:
        return [supervisor._launcher for supervisor in self._watched]

    def _settling(self, launcher: Launcher, timeout: float, unit: Unit | None, *, held: bool) -> Callable[[], Any]:
        def left() -> list[TaskHandle[Any]]:
            return self._left(launcher, unit, held=held)

        async def settle() -> None:
            if not await settled(left, timeout):
                await cut(launcher, left)
            await launcher.hooks.end(launcher.hooks.until(timeout))

        return settle

    def _left(self, launcher: Launcher, unit: Unit | None, *, held: bool = True) -> list[TaskHandle[Any]]:
        tasks = [*launcher.tasks, *launcher.detached]
        left = [task for task in tasks if task not in self._older and (unit is None or task._unit is unit)]
        return left if held else [task for task in left if task not in (cast("UnitOfWork", task._unit)._waiting or ())]

    def _look_for_strays(self, launcher: Launcher) -> None:
        for stray, starter in strays_of(launcher, self._known.__contains__):
            if stray not in self._strays:
                self._strays.add(stray)
                self.findings.note_untracked(starter, name_of(stray))

    # -- what it makes ----------------------------------------------------------------------------

    def context(self, label: str = "test", *, supervisor: Supervisor | None = None) -> TestContext:
        """Make a context under this kit; see `deferred.testing.create_context`.

        Args:
            label: What errors and reports call it.
            supervisor: Whose context it is; one with default settings when None.
        """
        owner = Supervisor() if supervisor is None else supervisor
        self.watch(owner)
        if supervisor is None:
            owner._launcher.opened = True  # the test waits for its work
        owner._launcher.seen = running_loop()  # where threads find the loop
        return make_test_context(owner._launcher, owner._launcher.options, None, label, _owner=owner, _keeper=self)

    def client(self, app: Any, **options: Any) -> AbstractAsyncContextManager[Client]:
        """Make a client of an ASGI app under this kit; see `deferred.testing.client`."""
        return open_client(app, self, **options)

    def aiohttp_client(self, app: Any, **options: Any) -> AbstractAsyncContextManager[Any]:
        """Make a client of an aiohttp app under this kit; see `deferred.testing.aiohttp_client`."""
        return open_aiohttp_client(app, self, **options)
