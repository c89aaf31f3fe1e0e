"""The owner of all background work of one app: its face, its opening, its drain."""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar

from msgspec import UNSET, UnsetType

from deferred._drain import Drain
from deferred._durable import Carrier, DurableWork, OnDrain
from deferred._events import (
    DrainFinished,
    DrainReport,
    DrainStarted,
    Outcome,
    SupervisorStats,
    TaskDead,
    TaskState,
)
from deferred._hooks import Hooks
from deferred._launch import Launcher
from deferred._limits import Limit, check_count
from deferred._process import alive
from deferred._registry import Upgrade
from deferred._retry import RetryPolicy, seconds
from deferred._run import current_task
from deferred._scope import Scope
from deferred._settings import TaskScope, check_choice, check_drain_timeout, check_limits, check_scope
from deferred._task import ErrorHook, Hook, Middleware, TaskHandle, TaskOptions, check_functions
from deferred.engines._protocol import DEFAULT_QUEUE, Engine
from deferred.instrumentation.logging import log_event

__all__ = ["Supervisor"]

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DeadHook = Callable[[TaskDead], Any]
Overflow = Literal["reject", "wait", "discard"]
OutOfScope = Literal["raise", "run", "ignore"]


class Supervisor:
    """The owner of all background work of one app.

    It lives as long as the app: ``async with supervisor`` opens it, leaving drains it (the
    integrations do that in the server's lifespan). It may be opened again afterwards.

    Args:
        retry: The retry policy of tasks that do not bring their own; None for no retries.
        timeout: Seconds that an attempt may take; None for no limit.
        max_running: How many tasks run at a time; further ones wait their turn.
        max_pending: How many tasks wait at a time.
        max_per_context: How many unfinished tasks one context has at a time, and how many
            its tasks may still register once it has ended.
        overflow: What happens beyond `max_pending` and `max_per_context`: ``"reject"`` raises
            `TaskRejectedError`, ``"wait"`` lets ``await ctx.run`` wait (what cannot wait is
            rejected), ``"discard"`` drops the work, with an event.
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
        self._launcher = Launcher(
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
        self._launcher.owner = weakref.ref(self)
        self._durable = self._launcher.durable = DurableWork(
            self._launcher,
            engine,
            serve=serve,
            concurrency=check_count(max_serving, "max_serving"),
            on_dead=() if on_dead is None else check_functions(on_dead, "on_dead"),
            on_drain=on_drain,
        )
        self._openings = 0
        self._stopping = False  # the process has been told to end
        self._draining: asyncio.Future[DrainReport] | None = None
        self._adopted: weakref.WeakSet[Supervisor] = weakref.WeakSet()
        alive.add(self)
        if out_of_scope != "raise":
            self._launcher.announce()
        for tell in tuple(_newcomers):
            tell(self)

    # -- its life -----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open it on the running event loop."""
        self.open()
        await self.ready()
        return self

    async def ready(self) -> None:
        """Have the engine connect, and create what is missing in its store.

        Leaving that out does no harm: whoever uses the engine first does it.

        Raises:
            EngineError: The store cannot be used as it is; the message says what to do.
        """
        await self._durable.ready()

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Drain it, then close it."""
        await self.close()

    def open(self) -> None:
        """Bind it to the running event loop; the first of several openings counts."""
        launcher = self._launcher
        loop = asyncio.get_running_loop()
        if launcher.loop is not None and launcher.loop.is_closed():
            self._openings = 0  # its last life broke off with its loop
        if not self._openings:
            launcher.opened, launcher.lazy = True, False
            launcher.why = None
            self._stopping = False
            if launcher.loop is loop:
                launcher.announce()
                launcher.watch()
            else:
                launcher.meet(loop, self)  # which does that too
            launcher.shut(None)
            self._durable.start()
        self._openings += 1

    async def close(self) -> None:
        """Drain it and take no more work; when it was opened several times, the first close drains."""
        launcher = self._launcher
        self._openings = max(0, self._openings - 1)
        try:
            if launcher.why is None:
                self._durable.serve, served = False, self._durable.serve
                try:
                    await self.drain()
                finally:
                    self._durable.serve = served
                if launcher.tasks:  # a hook has registered work as it was told of the end
                    await self._drain_once(launcher.timeout, current_task())
        finally:
            self._shut("it has been drained and closed; work must be registered before the shutdown")
            await self._durable.close()

    def _shut(self, why: str) -> None:
        launcher = self._launcher
        launcher.shut(why)
        launcher.lazy = True
        if launcher.out_of_scope == "raise":
            launcher.withdraw()  # the other policies hold as long as the supervisor exists
        launcher.unwatch()
        for task in tuple(launcher.detached):
            launcher.settle(task, Outcome.ABANDONED)

    async def drain(self, timeout: float | None = None) -> DrainReport:
        """Wait for all work, what it registers included; cancel at the deadline; then abandon.

        A drain that is under way is joined. Work is accepted as before, until the
        supervisor is closed.

        Args:
            timeout: Seconds until what is left is cancelled; `drain_timeout` when None.

        Returns:
            What was achieved; it has been told to the hooks (the log among them) before.
        """
        launcher = self._launcher
        limit = launcher.timeout if timeout is None else seconds(timeout, "timeout", zero=True)
        loop = asyncio.get_running_loop()
        me = current_task()
        if self._draining is not None:
            if me is None:
                return await asyncio.shield(self._draining)
            # The drain that is under way waits for this very task: it waits for the others alone.
            rest = limit if launcher.deadline is None else max(0.0, min(limit, launcher.deadline - launcher.now()))
            return await self._drain_once(rest, me)
        if launcher.loop is not loop:
            launcher.meet(loop, self)
        done = self._draining = loop.create_future()
        drain = Drain(launcher.tasks, limit, launcher.grace, me=me, drainers=launcher.drainers, now=launcher.now)
        launcher.drains.append(drain)
        launcher.look()
        launcher.deadline = drain.deadline
        self._durable.pause()
        drain.skip_waits()
        launcher.hooks.emit(DrainStarted(len(launcher.tasks), drain.deadline, at=drain.started))
        stored: list[str] = []
        try:
            async with asyncio.TaskGroup() as children:
                for child in self._adopted:
                    children.create_task(child.drain(limit))
                # In this very task: one that is cancelled before its first step would record nothing.
                await drain.run(launcher.cancel, launcher.settle)
            stored = await self._durable.hand_over(drain.lost, launcher.grace)
            if me is None:  # else its own verdict is among those that would be waited for
                await self._durable.finish(launcher.grace)
        finally:
            launcher.drains.remove(drain)
            launcher.look()
            launcher.deadline = None
            self._draining = None
            report = drain.report(stored)
            done.set_result(report)
            now = launcher.now()
            launcher.hooks.emit(DrainFinished(report, now - drain.started, at=now))
            if self._openings:
                self._durable.start()
        await launcher.hooks.finish(launcher.grace)
        return report

    async def _drain_once(self, limit: float, me: TaskHandle[Any] | None = None) -> DrainReport:
        """Drain without telling anybody, beside a drain that does or after it."""
        launcher = self._launcher
        drain = Drain(launcher.tasks, limit, launcher.grace, me=me, drainers=launcher.drainers, now=launcher.now)
        launcher.drains.append(drain)
        launcher.look()
        try:
            await drain.run(launcher.cancel, launcher.settle)
        finally:
            launcher.drains.remove(drain)
            launcher.look()
        return drain.report()

    def adopt(self, other: Supervisor) -> None:
        """Drain `other` with this one: for an app mounted inside another, which gets no lifespan."""
        if not other._drains_too(self):
            self._adopted.add(other)
            other._launcher.opened = True

    def _drains_too(self, other: Supervisor) -> bool:
        """Say whether draining this one drains `other`: adopting must make no circle."""
        return other is self or any(child._drains_too(other) for child in self._adopted)

    # -- what it is for -------------------------------------------------------------------------

    def context(self, label: str | None = None) -> Scope:
        """Open a context: ``with supervisor.context("import of March") as ctx:``.

        Leaving it closes it, whatever the reason: what was deferred then starts. The tasks
        are drained by ``ctx.drained()``, or with the supervisor.

        Args:
            label: What it is about; shown in logs, reports and the inspector.
        """
        return Scope(self._launcher.open, self._launcher.on_loop, label)

    def wrap(
        self, handler: Callable[P, Coroutine[Any, Any, T]], *, strict: bool = False
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Give a plain async function a context per call, and drain it before the call returns.

        For consumers, cron jobs, command lines and Lambda-style handlers, whose host stops
        the process when the function returns. Also a decorator.

        Args:
            handler: An async function.
            strict: Whether failures of deferred work are raised once all is drained: one as
                itself, several as an ExceptionGroup. A failure of the handler goes first.

        Raises:
            TypeError: `handler` is no async function.

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
        if not inspect.iscoroutinefunction(handler):
            generates = inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler)
            mend = ": wrap the function that iterates over it" if generates else ""
            message = f"wrap() takes an `async def` function, not {handler!r}{mend}"
            raise TypeError(message)

        @functools.wraps(handler)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            failures: list[BaseException] = []
            self._launcher.opened = True  # each call drains itself
            scope = self.context(getattr(handler, "__qualname__", None))
            try:
                with scope as ctx:
                    if strict:
                        ctx.on_error(lambda event: failures.append(event.error))
                    value = await handler(*args, **kwargs)
            finally:
                await scope.opened.drained()
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
        annotated parameters say what is stored.

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

    def add_carrier(self, carrier: Carrier) -> None:
        """Have `carrier(headers)` write what travels beside stored work, such as ``traceparent``.

        OpenTelemetry's ``propagate.inject`` is one. The task reads them from ``current_task().headers``.
        """
        self._durable.carriers.extend(check_functions((carrier,), "carrier"))

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

    @property
    def draining(self) -> bool:
        """Whether the process was told to end, it drains or is closed: readiness turns red, endless streams end."""
        return self._stopping or self._draining is not None or self._launcher.why is not None

    def _cut(self) -> bool:
        """Let every drain under way wait no longer, those of mounted apps included; say whether one was."""
        launcher = self._launcher
        for drain in launcher.drains:
            drain.cut()
            launcher.deadline = drain.deadline
        return any([bool(launcher.drains), *(child._cut() for child in self._adopted)])

    def add_hook(self, hook: Hook) -> None:
        """Tell `hook` what happens from now on."""
        self._launcher.hooks.add(check_functions((hook,), "hook")[0])
        self._launcher.look()

    def remove_hook(self, hook: Hook) -> None:
        """Tell `hook` nothing more; one that is not installed is ignored."""
        self._launcher.hooks.remove(hook)
        self._launcher.look()


_newcomers: list[Callable[[Supervisor], object]] = []
"""Who is told of every supervisor that is made: the kits of tests, as long as they watch all."""
