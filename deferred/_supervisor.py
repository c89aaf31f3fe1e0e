"""The owner of all background work of one app: its face."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial, wraps
from typing import Any, Literal, ParamSpec, TypeVar

from msgspec import UNSET, UnsetType

from deferred._durable import DurableWork, OnDrain
from deferred._events import (
    Execution,
    SupervisorStats,
    TaskDead,
    TaskFailed,
    TaskState,
    UnfinishedTask,
)
from deferred._hooks import Hooks
from deferred._launch import Launcher
from deferred._lifecycle import Lifecycle
from deferred._limits import Limit, check_count
from deferred._options import ErrorHook, Hook, TaskOptions, check_functions
from deferred._registry import Upgrade
from deferred._retry import RetryPolicy, seconds
from deferred._scope import Scope
from deferred._settings import TaskScope, check_choice, check_drain_timeout, check_flag, check_limits, check_scope
from deferred._task import Middleware
from deferred.engines._protocol import DEFAULT_QUEUE, Engine
from deferred.exceptions import TaskUnfinishedError
from deferred.instrumentation.logging import log_event

__all__ = ["Supervisor"]

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DeadHook = Callable[[TaskDead], Any]
Overflow = Literal["reject", "wait", "discard"]
OutOfScope = Literal["raise", "run", "ignore"]


class Supervisor(Lifecycle):
    """The owner of all background work of one app.

    It lives as long as the app: ``async with supervisor`` opens it, leaving drains it (the
    integrations do that in the server's lifespan). It may be opened again afterwards.

    Args:
        retry: The retry policy of tasks that do not bring their own; None for no retries.
        timeout: Seconds that an attempt may take; None for no limit.
        max_running: How many tasks run at a time; further ones wait their turn. One that waits
            for another task does not count as long as it does.
        max_pending: How many tasks wait at a time.
        max_per_context: How many unfinished tasks one context has at a time, and how many
            its tasks may still register once it has ended.
        overflow: What happens beyond `max_pending` and `max_per_context`: ``"reject"`` raises
            `TaskRejectedError`, ``"wait"`` lets ``await ctx.run`` wait (what cannot wait, or
            would wait for ever, is rejected), ``"discard"`` drops the work, with an event.
        drain_timeout: Seconds that a drain waits before it cancels. The default is the
            environment's ``DEFERRED_DRAIN_TIMEOUT``, else 20.
        cancel_grace: Seconds that cancelled tasks have to end before they are abandoned.
        out_of_scope: What `deferred.defer` does outside any context: ``"raise"``, ``"run"``
            (as a task of the app) or ``"ignore"``.
        on_error: A hook, or several, told of every final failure.
        hooks: Hooks told of every event.
        middleware: Functions ``async def middleware(task, call_next)`` around every attempt,
            the outermost first.
        task_scope: An asynchronous context manager factory entered around every attempt; it
            may take the task. What it yields is ``current_task().scope``.
        offload: Where synchronous functions run: any `concurrent.futures.Executor`; by
            default daemon threads of the supervisor's own.
        limits: A `Limit` for tasks of a name.
        hook_timeout: Seconds that an asynchronous hook may take.
        watchdog: Seconds that the event loop may be blocked before a warning names the task that
            does it; None for no watchdog. It is a thread, which costs a wake-up twice in that time.

        engine: Where durable work is stored: an `Engine`, or a URL such as ``"sqlite:///jobs.db"``.
        serve: Whether this process runs durable work too; a worker does so anyway.
        max_serving: How many durable tasks this process runs at a time.
        on_dead: A hook, or several, told of every job that becomes a dead letter.
        on_drain: What becomes of a registered task that a drain cannot finish: ``"abandon"``, or
            ``"enqueue"``, which stores it in the engine.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of its range; the message names it.

    Example:
        >>> import asyncio
        >>> async def main():
        ...     async with Supervisor(drain_timeout=5) as supervisor:
        ...         with supervisor.context("nightly job") as ctx:
        ...             ctx.defer(asyncio.sleep, 0)
        ...         report = await supervisor.drain()
        ...     return report.finished, supervisor.stats().succeeded
        >>> asyncio.run(main())
        (1, 1)
    """

    def __init__(
        self,
        *,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        max_running: int = 1000,
        max_pending: int = 10_000,
        max_per_context: int = 1000,
        overflow: Overflow = "reject",
        drain_timeout: float | None = None,
        cancel_grace: float = 2.0,
        out_of_scope: OutOfScope = "raise",
        on_error: ErrorHook | Iterable[ErrorHook] | None = None,
        hooks: Iterable[Hook] = (),
        middleware: Iterable[Middleware] = (),
        task_scope: TaskScope | None = None,
        offload: Executor | None = None,
        limits: Mapping[str, Limit] | None = None,
        hook_timeout: float = 5.0,
        watchdog: float | None = None,
        engine: Engine | str | None = None,
        serve: bool = True,
        max_serving: int = 20,
        on_dead: DeadHook | Iterable[DeadHook] | None = None,
        on_drain: OnDrain = "abandon",
    ) -> None:
        options = TaskOptions().overlay(retry=retry, timeout=timeout, middleware=middleware)
        if offload is not None and not isinstance(offload, Executor):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            message = f"offload must be a concurrent.futures.Executor, not {offload!r}"
            raise TypeError(message)
        launcher = Launcher(
            options=options,
            hooks=Hooks((log_event, *check_functions(hooks, "hooks")), seconds(hook_timeout, "hook_timeout")),
            on_error=() if on_error is None else check_functions(on_error, "on_error"),
            max_running=check_count(max_running, "max_running"),
            max_pending=check_count(max_pending, "max_pending"),
            max_per_context=check_count(max_per_context, "max_per_context"),
            limits=check_limits({} if limits is None else limits),
            overflow=check_choice(overflow, Overflow, "overflow"),
            out_of_scope=check_choice(out_of_scope, OutOfScope, "out_of_scope"),
            task_scope=None if task_scope is None else check_scope(task_scope),
            offload=offload,
            timeout=check_drain_timeout(drain_timeout),
            grace=seconds(cancel_grace, "cancel_grace", zero=True),
            stall=None if watchdog is None else seconds(watchdog, "watchdog"),
        )
        durable = DurableWork(
            launcher,
            engine,
            serve=check_flag(serve, "serve"),
            concurrency=check_count(max_serving, "max_serving"),
            on_dead=() if on_dead is None else check_functions(on_dead, "on_dead"),
            on_drain=on_drain,
        )
        self._be(launcher, durable)
        if out_of_scope != "raise":
            launcher.announce()
        for tell in tuple(_newcomers):
            tell(self)

    # -- what it is for -------------------------------------------------------------------------

    def context(self, label: str | None = None) -> Scope:
        """Open a context: ``with supervisor.context("import of March") as ctx:``.

        Leaving it closes it, whatever the reason: what was deferred then starts. The tasks
        are drained by ``ctx.drained()``, or with the supervisor.

        Args:
            label: What it is about; shown in logs, reports and the inspector.

        Raises:
            TypeError: The label is no text.
        """
        if label is not None and not isinstance(label, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            message = f"the label of a context must be a text, not {label!r}"
            raise TypeError(message)
        return Scope(self._launcher.open, self._launcher.on_loop, label)

    def wrap(
        self, handler: Callable[P, Coroutine[Any, Any, T]], *, strict: bool = False
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Give a plain async function a context per call, and drain it before the call returns.

        For consumers, cron jobs, command lines and Lambda-style handlers, whose host stops
        the process when the function returns. Also a decorator.

        Args:
            handler: An async function.
            strict: Whether failures of the work that is drained are raised once all is: one as
                itself, several as an ExceptionGroup. Work that was cut at the deadline is one,
                a `TaskUnfinishedError`. A failure of the handler goes first.

        Raises:
            TypeError: `handler` is no async function, or `strict` neither True nor False.

        Example:
            >>> import asyncio
            >>> from deferred import defer
            >>> supervisor = Supervisor()
            >>> @supervisor.wrap
            ... async def handle(message):
            ...     defer(asyncio.sleep, 0)
            ...     return message.upper()
            >>> asyncio.run(handle("registered"))
            'REGISTERED'
        """
        check_flag(strict, "strict")
        if not inspect.iscoroutinefunction(handler):
            generates = inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler)
            mend = ": wrap the function that iterates over it" if generates else ""
            message = f"wrap() takes an `async def` function, not {handler!r}{mend}"
            raise TypeError(message)

        @wraps(handler)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            failures: list[BaseException] = []
            self._launcher.opened = True  # each call drains itself
            scope = self.context(getattr(handler, "__qualname__", None))
            try:
                with scope as ctx:
                    if strict:
                        ctx.on_error(partial(_note, failures))
                    value = await handler(*args, **kwargs)
            finally:
                report = await scope.opened.drained()
            if strict:
                failures.extend(map(_unfinished, (*report.cancelled, *report.abandoned)))
            if failures:
                raise failures[0] if len(failures) == 1 else BaseExceptionGroup("deferred work failed", failures)
            return value

        return call

    def task(
        self,
        name: str,
        *,
        retry: RetryPolicy | UnsetType | None = UNSET,
        timeout: float | UnsetType | None = UNSET,
        queue: str = DEFAULT_QUEUE,
        version: int = 1,
        upgrade: Upgrade | None = None,
    ) -> Callable[[F], F]:
        """Register a function as a durable task: a decorator that leaves it as it is.

        Stored work names it by `name` alone, so the name stays when the function moves. Its
        annotated parameters say what is stored. These options are those of stored work; where the
        function is deferred in memory, those of the context hold.

        Args:
            name: Its name in stores, logs and commands.
            retry: A `Retry`; the supervisor's by default, None for none.
            timeout: Seconds that each attempt may take; the supervisor's by default.
            queue: Which workers run it.
            version: Of its parameters; count it up when stored arguments no longer fit.
            upgrade: ``upgrade(version, arguments)`` returns older arguments as they are now.

        Raises:
            TypeError: It is no function, or a parameter is no data.
            ValueError: The name is taken, or an option out of its range.

        Example:
            >>> supervisor = Supervisor()
            >>> @supervisor.task("send_mail")
            ... async def send_mail(to: str): ...
        """
        options = self._launcher.options.overlay(retry=retry, timeout=timeout)

        def register(func: F) -> F:
            self._durable.registry.add(func, name, options, queue=queue, version=version, upgrade=upgrade)
            return func

        return register

    @property
    def engine(self) -> Engine | None:
        """Where durable work is stored: to count it, and to see to its dead letters."""
        return self._durable.engine

    def stats(self) -> SupervisorStats:
        """Return the counts of now, and of all tasks that ended since it was made."""
        launcher = self._launcher
        counts = launcher.unhappy
        return SupervisorStats(
            pending=len(launcher.tasks) + len(launcher.detached) - launcher.slots.busy,
            running=launcher.slots.busy,
            succeeded=launcher.succeeded,
            failed=counts[TaskState.FAILED],
            cancelled=counts[TaskState.CANCELLED],
            discarded=counts[TaskState.DISCARDED],
            abandoned=counts[TaskState.ABANDONED],
        )

    def add_hook(self, hook: Hook) -> None:
        """Tell `hook` what happens from now on.

        Its method ``carry(headers)``, if it has one, writes what travels beside stored work, such as
        ``traceparent``; the task reads it from ``current_task().headers``.
        """
        self._launcher.hooks.add(check_functions((hook,), "hook")[0])
        self._launcher.look()

    def remove_hook(self, hook: Hook) -> None:
        """Tell `hook` nothing more; one that is not installed is ignored."""
        self._launcher.hooks.remove(hook)
        self._launcher.look()


def _note(failures: list[BaseException], event: TaskFailed) -> None:
    """Note a failure that nobody else answers for: a step in line is its handler's, fire-and-forget work nobody's."""
    if event.task.execution not in (Execution.SEQUENTIAL, Execution.FIRE_AND_FORGET):
        failures.append(event.error)


def _unfinished(task: UnfinishedTask) -> TaskUnfinishedError:
    """Return the error that work which was cut at a deadline is to whoever insists on its end."""
    return TaskUnfinishedError(
        f"task {task.name!r} (deferred at {task.site}) was cut at the deadline of the drain, {task.age:g} s old"
    )


_newcomers: list[Callable[[Supervisor], object]] = []
"""Who is told of every supervisor that is made: the kits of tests, as long as they watch all."""
