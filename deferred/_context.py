"""What one unit of work may defer to: the background-task context.

Rules of this file:

- A context is *open* until its response is out (`close`), then *closed*, and *ended* when
  the unit of work itself is over. It takes work until it has ended and nothing is pending.
- ``defer``red work waits in the context and is released on the turn of the event loop after
  the closing one, in registration order; ``wait_until`` launches at once.
- The context does not know the supervisor: it is given a `Host`.
- Sets and lists are shared with threads; each operation on them is atomic, and a thread
  only adds. Everything else happens on the event loop.
"""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop, Future
from asyncio import _get_running_loop as running_loop
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from inspect import CO_COROUTINE
from sys import _getframe
from types import FrameType, FunctionType, TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar, overload

import msgspec
from msgspec import UNSET, UnsetType

from deferred._call import Kind, check_awaitable, check_callable, close_refused, name_of
from deferred._drain import Drain
from deferred._events import (
    ContextClosed,
    ContextSettled,
    DrainReport,
    Execution,
    Outcome,
    StepFinished,
    TaskDeferred,
)
from deferred._hooks import Hooks
from deferred._retry import RetryPolicy
from deferred._task import (
    Clock,
    ErrorHook,
    Middleware,
    TaskHandle,
    TaskOptions,
    When,
    check_functions,
    current_unit,
    new_id,
    running_task,
)
from deferred.exceptions import ContextClosedError

__all__ = ["DeferredContext", "Host", "hosts", "once_only"]

P = ParamSpec("P")
T = TypeVar("T")

_ASYNC = Kind.ASYNC
_DEFERRED = Execution.DEFERRED
_FIRST_ERROR_STATUS = 400

_NO_STEP: AbstractContextManager[None] = nullcontext()


class Host(Protocol):
    """What a context needs of the supervisor it was opened by."""

    loop: AbstractEventLoop | None
    home: object  # the loop, as long as work is accepted there
    lock: threading.Lock  # held by threads that register
    tasks: set[TaskHandle[Any]]
    roomy: int  # as long as there are fewer tasks, no limit of the supervisor is near
    max_per_context: int
    hooks: Hooks
    now: Clock
    options: TaskOptions
    out_of_scope: str
    warned: bool

    def meet(self, loop: AbstractEventLoop | None, work: object, /) -> None:
        """Bind to `loop` (None: called in a thread), or refuse to register `work` there."""
        ...

    def admit(self, task: TaskHandle[Any], context: DeferredContext, /) -> bool:
        """Accept `task`, settle it as discarded (False), or raise."""
        ...

    def confirm(self, task: TaskHandle[Any], context: DeferredContext, /) -> None:
        """Take back what a thread registered while the supervisor was shut, and raise."""
        ...

    def release(self, context: DeferredContext, /) -> None:
        """Launch what has waited in `context`, from the next turn of the loop on."""
        ...

    def launch(self, task: TaskHandle[Any], /, *, eager: bool) -> None:
        """Start `task` as soon as there is a slot; on the loop."""
        ...

    def settle(self, task: TaskHandle[Any], outcome: Outcome, /) -> None:
        """Bring `task` to its end."""
        ...

    def cancel(self, task: TaskHandle[Any], outcome: Outcome, /) -> bool:
        """Cancel `task`."""
        ...

    def inline(self, task: TaskHandle[Any], /) -> Coroutine[Any, Any, None]:
        """Run `task` inside the caller's own task, raising its error."""
        ...

    def room(self, context: DeferredContext, name: str, /) -> Future[None] | None:
        """Return what to wait for until a limit may be below its bound; None when it is."""
        ...

    def adopt(self, other: Any, /) -> None:
        """Have the supervisor of another host drained with this one's."""
        ...

    def drain_context(self, context: DeferredContext, timeout: float | None, /) -> Coroutine[Any, Any, DrainReport]:
        """Drain the tasks of one context."""
        ...

    @property
    def ambient(self) -> DeferredContext:
        """The context of work that belongs to no unit of work."""
        ...


hosts: list[Callable[[], Host | None]] = []
"""The supervisors that `deferred.defer` may turn to outside any context; the one opened last at the end."""


class DeferredContext(msgspec.Struct, eq=False, weakref=True):
    """What one unit of work (request, websocket, message, plain call) may defer to.

    It lives as long as its unit of work, and until the last of its tasks has settled.
    ``supervisor.context()`` and the integrations make it; handlers get it injected, or find
    it with `current_context`.

    Example:
        >>> import asyncio
        >>> from deferred import Supervisor
        >>> async def main():
        ...     order = []
        ...     async def note(what):
        ...         order.append(what)
        ...     async with Supervisor() as supervisor:
        ...         with supervisor.context() as ctx:
        ...             ctx.defer(note, "after the answer")
        ...             order.append("answer")
        ...         await ctx.drained()
        ...     return order
        >>> asyncio.run(main())
        ['answer', 'after the answer']
    """

    _host: Host
    _options: TaskOptions
    _describe: Callable[[Any], str] | None = None
    _subject: Any = None
    _root: DeferredContext | None = None
    _pending: int = 0  # its unsettled tasks; touched on the event loop only
    _sent: int = 0  # tasks that threads have registered; touched under the host's lock only
    _arrived: int = 0  # those of them that the event loop has counted
    _waiting: list[TaskHandle[Any]] | None = None  # for the response to be out
    _held: list[TaskHandle[Any]] | None = None  # for the outcome to be known
    _on_error: tuple[ErrorHook, ...] = ()
    _drains: tuple[Drain, ...] = ()
    _closed: bool = False
    _decided: bool = False
    _ended: bool = False
    _error: BaseException | None = None
    _status: int | None = None
    _finished: int = 0
    _failed: int = 0
    _after_end: int = 0
    _id: str | None = None
    route: Execution | None = None

    # -- what it is ---------------------------------------------------------------------

    @property
    def id(self) -> str:
        """An id that no other context of any process has."""
        root = self._root or self
        return root._id or new_id(root)

    @property
    def label(self) -> str:
        """What it is about, such as ``"POST /register"``; empty when nobody said."""
        root = self._root or self
        if root._describe is not None:
            root._subject, root._describe = root._describe(root._subject), None
        return root._subject or ""

    @property
    def execution(self) -> Execution:
        """How the route runs its steps: what its decorator says, else ``deferred``."""
        return (self._root or self).route or Execution.DEFERRED

    @property
    def tasks(self) -> tuple[TaskHandle[Any], ...]:
        """Its tasks that have not settled yet."""
        root = self._root or self
        return tuple(task for task in tuple(root._host.tasks) if task._unit is root)

    @property
    def status(self) -> int | None:
        """The status of the response, once known; integrations set it."""
        return (self._root or self)._status

    @status.setter
    def status(self, status: int | None) -> None:
        (self._root or self)._status = status

    @property
    def closed(self) -> bool:
        """Whether the response is out, or failed, or the client is gone."""
        return (self._root or self)._closed

    # -- what handlers do with it ---------------------------------------------------------

    @overload
    def defer(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
    @overload
    def defer(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
    def defer(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Call `func` with these arguments after the response is out.

        A plain function runs in a thread. All tasks of a context start in the order of
        their registration and run concurrently. May be called from any thread.

        Args:
            func: A function, not a coroutine object.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments; options of the task go to `with_options`.

        Raises:
            TypeError: `func` is no function that could be run.
            ContextClosedError: The unit of work has ended and nothing of it is pending.
            SupervisorClosedError: The supervisor has been drained.
            TaskRejectedError: A limit is reached and the policy is not ``"discard"``.
            EventLoopError: No asyncio loop runs, or it is another one than the supervisor's.
        """
        return (self._root or self)._register(func, args, kwargs, self._options, _getframe(1))

    def wait_until(self, awaitable: Awaitable[T], /) -> TaskHandle[T]:
        """Start `awaitable` now and keep it alive after the response.

        Args:
            awaitable: A coroutine, task, future, or anything with ``__await__``.

        Raises:
            TypeError: It is not awaitable, or `with_options` asked for retries, which only
                a function can have.
            ValueError: The coroutine has been started already.
            ContextClosedError: As `defer`; likewise the other errors.
        """
        check_awaitable(awaitable)
        root = self._root or self
        options = self._options
        if options.retry is not None or options.when != "always":
            options = once_only(options, root._host.options, awaitable)
        return root._register_slowly(Kind.AWAITABLE, awaitable, (), {}, options, _getframe(1), Execution.CONCURRENT)

    @overload
    def run(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, TaskHandle[T]]: ...
    @overload
    def run(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, TaskHandle[T]]: ...
    def run(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, TaskHandle[Any]]:
        """Run one step the way the route's decorator says; ``await`` it.

        ``sequential``: awaited here, its error is raised here. ``fire_and_forget``: started
        now, nobody waits for it. ``concurrent``: started now, drained. ``deferred`` (also
        without any decorator): started after the response, drained.

        Returns:
            A coroutine that gives the `TaskHandle`. With the overflow policy ``"wait"`` it
            waits until there is room.

        Raises:
            TypeError: As `defer`; likewise the other errors, when awaited.
        """
        return self._run(check_callable(func), func, args, kwargs, _getframe(1))

    async def _run(
        self, kind: Kind, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> TaskHandle[Any]:
        root = self._root or self
        execution = root.route or Execution.DEFERRED
        if execution is Execution.SEQUENTIAL:
            task = root._make(kind, func, args, kwargs, self._options, frame, execution)
            if root._host.hooks.deferred:
                root._host.hooks.emit(TaskDeferred(task, at=task._created))
            await root._host.inline(task)
            return task
        name = self._options.name or name_of(func)
        while (room := root._host.room(root, name)) is not None:
            await room
        return root._register_slowly(kind, func, args, kwargs, self._options, frame, execution)

    def with_options(
        self,
        *,
        name: str | UnsetType = UNSET,
        retry: RetryPolicy | UnsetType | None = UNSET,
        timeout: float | UnsetType | None = UNSET,
        when: When | UnsetType = UNSET,
        middleware: Iterable[Middleware] = (),
        on_error: ErrorHook | None = None,
    ) -> DeferredContext:
        """Return a view of this context whose tasks have these options.

        Args:
            name: What logs, limits and the inspector call the task.
            retry: A `Retry`; None for none, whatever the supervisor's default is.
            timeout: Seconds that each attempt may take; None for no limit.
            when: ``"always"``, or only after ``"success"`` (final status below 400 and no
                exception) or ``"error"``. Work that does not match is discarded, with an event.
            middleware: Functions ``async def middleware(task, call_next)`` around every
                attempt, inside the supervisor's own.
            on_error: A hook for the final failure of these tasks, beside the others.

        Raises:
            TypeError: An option is of the wrong type.
            ValueError: An option is out of its range.
        """
        options = self._options.overlay(
            name=name, retry=retry, timeout=timeout, when=when, middleware=middleware, on_error=on_error
        )
        root = self._root or self
        return DeferredContext(root._host, options, None, None, root)

    def on_error(self, hook: ErrorHook) -> ErrorHook:
        """Tell `hook` of every final failure of this context's tasks; also a decorator.

        Args:
            hook: ``hook(event)`` or ``async def hook(event)``; it gets a `TaskFailed`.
        """
        root = self._root or self
        root._on_error = (*root._on_error, *check_functions((hook,), "on_error"))
        return hook

    def step(self, name: str) -> AbstractContextManager[None]:
        """Time a part of the unit of work for whoever watches; free when nobody does.

        Args:
            name: What the inspector shows, such as ``"INSERT runners"``.
        """
        root = self._root or self
        return _Step(root, name) if root._host.hooks.step else _NO_STEP

    async def drained(self, timeout: float | None = None) -> DrainReport:
        """Wait until every task of this context has settled, those they register included.

        Args:
            timeout: Seconds until what is left is cancelled; the supervisor's
                ``drain_timeout`` when None.

        Returns:
            The report; its counts are of the whole life of the context.
        """
        root = self._root or self
        return await root._host.drain_context(root, timeout)

    # -- what integrations do with it -------------------------------------------------------

    def close(self, *, decided: bool = True) -> None:
        """Say that the response is out: deferred work starts on the next turn of the loop.

        Args:
            decided: Whether the outcome is known. False when the client went away first:
                work with a ``when`` then waits for the end of the unit of work.
        """
        root = self._root or self
        if not root._closed:
            root._closed = True
            root._decided = decided
            if root._host.hooks.closed:
                root._host.hooks.emit(ContextClosed(root, root._error, at=root._host.now()))
            if root._waiting is not None:
                root._host.release(root)

    def end(self, error: BaseException | None = None) -> None:
        """Say that the unit of work is over; closes it when that has not been said.

        Args:
            error: The exception that ended it, if one did.
        """
        if self._error is None:
            self._error = error
        if not self._closed:
            self.close()
        self._decided = self._ended = True
        if self._held is not None:
            self._waiting, self._held = [*self._held, *(self._waiting or ())], None
            self._host.release(self)
        if not self.pending and self._host.hooks.settled:
            self._host.hooks.emit(ContextSettled(self, at=self._host.now()))

    @property
    def pending(self) -> int:
        """How many of its tasks have not settled."""
        root = self._root or self
        return root._pending + root._sent - root._arrived

    def belongs_to(self, host: object) -> bool:
        """Say whether it was opened by the supervisor behind `host`."""
        return self._host is host

    def cancel(self, task: TaskHandle[Any], /) -> bool:
        """Cancel one of its tasks; what `TaskHandle.cancel` calls."""
        return self._host.cancel(task, Outcome.CANCELLED_BY_HANDLE)

    # -- registration -----------------------------------------------------------------------

    def _register(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions, frame: FrameType
    ) -> TaskHandle[Any]:
        """Accept a function: the short way, on the loop and far from every limit."""
        host = self._host
        if (
            type(func) is not FunctionType
            or not func.__code__.co_flags & CO_COROUTINE
            or running_loop() is not host.home
            or self._ended
            or self._pending >= host.max_per_context
            or len(host.tasks) >= host.roomy
        ):
            kind = check_callable(func)
            return self._register_slowly(kind, func, args, kwargs, options, frame, _DEFERRED)
        variables = copy_context()
        if current_unit.get(None) is not self:
            variables.run(current_unit.set, self)
        if running_task.get(None) is not None:
            variables.run(running_task.set, None)  # this code runs in a task, but not the same
        task: TaskHandle[Any] = TaskHandle(
            _ASYNC,
            func,
            args,
            kwargs,
            options,
            self,
            variables,
            frame.f_code,
            frame.f_lineno,
            host.now(),
            _DEFERRED,
            True,
        )
        host.tasks.add(task)
        self._pending += 1
        if host.hooks.deferred:
            host.hooks.emit(TaskDeferred(task, at=task._created))
        if self._waiting is not None:
            self._waiting.append(task)
        else:
            self._waiting = [task]
            if self._closed:
                host.release(self)
        return task

    def _make(
        self,
        kind: Kind,
        work: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        frame: FrameType,
        execution: Execution,
    ) -> TaskHandle[Any]:
        variables = copy_context()
        if current_unit.get(None) is not self:
            variables.run(current_unit.set, self)
        if running_task.get(None) is not None:
            variables.run(running_task.set, None)  # this code runs in a task, but not the same
        now = self._host.now()
        return TaskHandle(
            kind, work, args, kwargs, options, self, variables, frame.f_code, frame.f_lineno, now, execution
        )

    def _register_slowly(
        self,
        kind: Kind,
        work: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        frame: FrameType,
        execution: Execution,
    ) -> TaskHandle[Any]:
        """Accept any work from anywhere, or refuse it."""
        host = self._host
        loop = running_loop()
        try:
            if loop is None or loop is not host.home:
                host.meet(loop, work)
            if self._ended:
                self._check_pending(work)
            task = self._make(kind, work, args, kwargs, options, frame, execution)
            if loop is None:
                with host.lock:
                    accepted = host.admit(task, self)
                    self._sent += task._tracked
                host.confirm(task, self)
            else:
                accepted = host.admit(task, self)
                self._pending += task._tracked
        except BaseException:
            close_refused(work)
            raise
        if accepted:
            if loop is not None:
                self._arrive(task)
            elif host.loop is not None:  # meet() has seen to that
                host.loop.call_soon_threadsafe(self._arrive_from_thread, task)
        return task

    def _check_pending(self, work: object) -> None:
        """Refuse work once the unit of work has ended and nothing of it is pending."""
        if not self.pending:
            about = f" of {self.label}" if self.label else ""
            message = (
                f"{name_of(work)} came too late: the unit of work{about} has ended and nothing of it is pending. "
                "Register it before the handler returns, or from one of its tasks; work that belongs to no "
                "request goes into a `with supervisor.context():` of its own"
            )
            raise ContextClosedError(message)
        self._after_end += 1

    def _arrive_from_thread(self, task: TaskHandle[Any]) -> None:
        if task._tracked:  # else a new loop has taken over, and it is abandoned already
            self._pending += 1
            self._arrived += 1
            self._arrive(task)

    def _arrive(self, task: TaskHandle[Any]) -> None:
        host = self._host
        if host.hooks.deferred:
            host.hooks.emit(TaskDeferred(task, at=task._created))
        if task._execution is not _DEFERRED:
            host.launch(task, eager=False)
            return
        if self._waiting is not None:
            self._waiting.append(task)
        else:
            self._waiting = [task]
            if self._closed:
                host.release(self)

    def decide(self, task: TaskHandle[Any], /) -> bool | None:
        """Say whether a released task is to run; None while the outcome is not known (it is held)."""
        when = task._options.when
        if when == "always":
            return True
        if self._decided:
            return (when == "error") is self._failing
        self._held = [*(self._held or ()), task]
        return None

    @property
    def _failing(self) -> bool:
        return self._error is not None or (self._status or 0) >= _FIRST_ERROR_STATUS


class _Step:
    """A named span of time inside a unit of work."""

    __slots__ = ("_context", "_name", "_started")

    def __init__(self, context: DeferredContext, name: str) -> None:
        self._context = context
        self._name = name
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = self._context._host.now()

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        host = self._context._host
        host.hooks.emit(StepFinished(self._context, self._name, self._started, error, at=host.now()))


def once_only(options: TaskOptions, defaults: TaskOptions, awaitable: object) -> TaskOptions:
    """Return options an awaitable can have, or refuse those that only a function can."""
    if options.retry is not None and options.retry is not defaults.retry:
        close_refused(awaitable)
        message = (
            f"{name_of(awaitable)} cannot be retried: an awaitable runs once. Pass the function instead: "
            "`ctx.with_options(retry=...).defer(func, ...)`"
        )
        raise TypeError(message)
    if options.when != "always":
        close_refused(awaitable)
        message = (
            f"{name_of(awaitable)} would start now, before the outcome is known, so when={options.when!r} "
            "cannot hold. Use `defer(func, ...)`, which starts after the response"
        )
        raise ValueError(message)
    return options.overlay(retry=None)
