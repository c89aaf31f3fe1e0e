"""What one unit of work may defer to: the background-task context, as handlers see it."""

from __future__ import annotations

from asyncio import _get_running_loop as running_loop
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from sys import _getframe
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from msgspec import UNSET, UnsetType

from deferred._call import Kind, check_awaitable, check_callable, close_refused, name_of
from deferred._events import DrainReport, Execution, Outcome, StepFinished, TaskDeferred
from deferred._options import ErrorHook, TaskOptions, When, check_functions
from deferred._registration import Registration
from deferred._retry import RetryPolicy
from deferred._stores import STORED, stored
from deferred._task import Middleware, TaskHandle, current_unit
from deferred._unit import UnitOfWork
from deferred.exceptions import EngineError

__all__ = ["DeferredContext", "make_context", "once_only"]

P = ParamSpec("P")
T = TypeVar("T")

_get_unit = current_unit.get  # a method of an imported name is looked up anew for each call
_NO_STEP: AbstractContextManager[None] = nullcontext()
_KNOWING = (Execution.DEFERRED, Execution.DURABLE)  # durable work is refused any option, by a better message


class DeferredContext(Registration):
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

    __slots__ = STORED

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
        root = self._root or self
        variables = copy_context()
        if _get_unit(None) is not root:
            variables.run(current_unit.set, root)
        return root._register(func, args, kwargs, self._options, variables, _getframe(1))

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
        without any decorator): started after the response, drained. ``durable``: stored; `func`
        must be a registered task.

        Returns:
            A coroutine that gives the `TaskHandle`. With the overflow policy ``"wait"`` it
            waits until there is room.

        Raises:
            TypeError: As `defer`; likewise the other errors, when awaited.
            ValueError: The step would start before the outcome is known that its ``when`` asks for.
        """
        return self._run(check_callable(func, "run"), func, args, kwargs, _getframe(1))

    async def _run(
        self, kind: Kind, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> TaskHandle[Any]:
        root = self._root or self
        execution = root.execution
        if self._options.when != "always" and execution not in _KNOWING:
            raise ValueError(_too_early(func, self._options.when))
        if execution is Execution.SEQUENTIAL:
            if running_loop() is None:
                root._host.meet(None, func)  # says what is missing
            task = root._make(kind, func, args, kwargs, self._options, frame, execution)
            if root._host.hooks.deferred:
                root._host.hooks.emit(TaskDeferred(task, at=task._created))
            await root._host.inline(task)
            return task
        if execution is Execution.DURABLE:
            task = root._make(kind, func, args, kwargs, root._options, frame, execution)
            task._id = await self.enqueue(func, *args, **kwargs)
            task._outcome, task._vars = Outcome.STORED, None
            return task
        name = self._options.name or name_of(func)
        if (room := root._host.room(root, name)) is not None:
            await room
        return root._register_slowly(kind, func, args, kwargs, self._options, frame, execution)

    async def enqueue(
        self,
        task: Callable[..., Any] | str,
        /,
        *args: Any,
        connection: Any = None,
        delay: float | None = None,
        key: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Store a call of a registered task; it is run though this process dies, at least once.

        The arguments are checked against its signature here.

        Args:
            task: A function registered by ``@supervisor.task(name)``, or its name.
            *args: Its positional arguments.
            connection: A connection with an open transaction: the job exists when that is
                committed, and not when it is rolled back. Without one it is stored at once.
            delay: Seconds before it may start.
            key: While a job of this task with the same key is unfinished, no other is stored.
            **kwargs: Its keyword arguments.

        Returns:
            The job's id, its idempotency key; that of the unfinished job where the key is known.

        Raises:
            UnknownTaskError: The function is not registered.
            PayloadError: The arguments do not fit, or cannot be stored.
            EngineError: There is no engine, or it cannot join the connection.
            TypeError: This is a view by `with_options`: durable work has its options where it is registered.
        """
        root = self._root
        if root is not None:
            message = (
                f"{name_of(task)} is stored without the options of this view: a worker knows the options that it was "
                "registered with, `@supervisor.task(name, retry=..., timeout=...)`"
            )
            raise TypeError(message)
        return await self._store(task, args, kwargs, connection=connection, delay=delay, key=key)

    def _store(
        self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any
    ) -> Coroutine[Any, Any, str]:
        durable = self._host.durable
        if durable is None:
            message = "this context belongs to no supervisor with durable work"
            raise EngineError(message)
        return durable.store(self, task, args, kwargs, **options)

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
        return make_context(root._host, options, None, None, root)

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

        Raises:
            TypeError: The name is no text.
        """
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            message = f"the name of a step must be a text, not {name!r}"
            raise TypeError(message)
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


make_context = stored(DeferredContext)
"""Make a context: of a host, options, what describes its subject, the subject, its root."""


class _Step:
    """A named span of time inside a unit of work."""

    __slots__ = ("_context", "_name", "_started")

    def __init__(self, context: UnitOfWork, name: str) -> None:
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
        raise ValueError(_too_early(awaitable, options.when))
    return options.overlay(retry=None)


def _too_early(work: object, when: str) -> str:
    return (
        f"{name_of(work)} would start now, before the outcome is known, so when={when!r} "
        "cannot hold. Use `defer(func, ...)`, which starts after the response"
    )
