"""What type checkers know of right calls; never run, checked by `make types`."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, assert_type

from deferred import (
    DeferredContext,
    DrainReport,
    Event,
    Limit,
    Retry,
    RetryPolicy,
    Supervisor,
    SupervisorStats,
    TaskEvent,
    TaskFailed,
    TaskHandle,
    TaskState,
    UnfinishedTask,
    concurrent,
    current_context,
    current_task,
    defer,
    deferred,
    fire_and_forget,
    sequential,
    wait_until,
)
from deferred.integrations.asgi import DeferredMiddleware


async def send(to: str, *, copies: int = 1) -> bytes:
    """Be an async function."""
    return to.encode() * copies


def count(words: str) -> int:
    """Be a plain function."""
    return len(words)


class Mailer:
    """Has methods that can be deferred, and can be called itself."""

    async def send(self, to: str) -> bytes:
        """Be a bound method."""
        return to.encode()

    @classmethod
    def made_for(cls, host: str) -> "Mailer":
        """Be a class method."""
        return cls()

    async def __call__(self, to: str) -> float:
        """Be a callable object."""
        return float(to)


class Later:
    """Is awaitable without being a coroutine."""

    def __await__(self) -> Any:
        """Give nothing."""
        yield


def functions_keep_their_results(ctx: DeferredContext) -> None:
    """`defer` gives a handle of what the function returns, awaited or not."""
    assert_type(ctx.defer(send, "a@example.org", copies=2), TaskHandle[bytes])
    assert_type(ctx.defer(count, "one two"), TaskHandle[int])
    assert_type(defer(send, "a@example.org"), TaskHandle[bytes])
    assert_type(defer(count, words="one two"), TaskHandle[int])


def every_kind_of_callable_is_a_function(ctx: DeferredContext) -> None:
    """Methods, classes, partials, lambdas and callable objects are taken with their types."""
    mailer = Mailer()
    assert_type(ctx.defer(mailer.send, "a@example.org"), TaskHandle[bytes])
    assert_type(ctx.defer(Mailer.made_for, "example.org"), TaskHandle[Mailer])
    assert_type(ctx.defer(mailer, "1"), TaskHandle[float])
    assert_type(ctx.defer(functools.partial(send, copies=2), "a@example.org"), TaskHandle[bytes])
    assert_type(ctx.defer(lambda: 7), TaskHandle[int])
    assert_type(ctx.defer(asyncio.sleep, 0, "result"), TaskHandle[str])


async def awaitables_keep_their_results(ctx: DeferredContext) -> None:
    """`wait_until` gives a handle of what is awaited, whatever kind of awaitable that is."""
    assert_type(ctx.wait_until(send("a@example.org")), TaskHandle[bytes])
    assert_type(wait_until(send("a@example.org")), TaskHandle[bytes])
    assert_type(ctx.wait_until(asyncio.create_task(send("a@example.org"))), TaskHandle[bytes])
    assert_type(ctx.wait_until(asyncio.get_running_loop().create_future()), TaskHandle[Any])
    assert_type(ctx.wait_until(asyncio.to_thread(count, "one two")), TaskHandle[int])
    wait_until(Later())


async def steps_give_handles(ctx: DeferredContext) -> None:
    """`await ctx.run(...)` gives the handle of the step."""
    assert_type(await ctx.run(send, "a@example.org"), TaskHandle[bytes])
    assert_type(await ctx.run(count, "one two"), TaskHandle[int])


async def a_handle_tells_all(handle: TaskHandle[bytes]) -> None:
    """A handle has the result under its type, and everything else there is to know."""
    assert_type(await handle, bytes)
    assert_type(handle.result(), bytes)
    assert_type(handle.cancel(), bool)
    assert_type(handle.done(), bool)
    assert_type(handle.state, TaskState)
    assert_type(handle.error, BaseException | None)
    assert_type(handle.attempts, int)
    assert_type(handle.name, str)
    assert_type(handle.id, str)
    assert_type(handle.site, str)
    assert_type(handle.retry, RetryPolicy | None)
    assert_type(handle.timeout, float | None)


def a_handle_is_covariant(handle: TaskHandle[bool]) -> TaskHandle[int]:
    """A handle of a bool is a handle of an int."""
    return handle


async def middleware(task: TaskHandle[Any], call_next: Callable[..., Awaitable[Any]]) -> Any:
    """Be a task middleware."""
    return await call_next(task)


def hook(event: Event) -> None:
    """Be a hook."""
    if isinstance(event, TaskEvent):
        assert_type(event.task.name, str)


async def error_hook(event: TaskFailed) -> None:
    """Be an asynchronous error hook."""
    assert_type(event.error, BaseException)
    assert_type(event.attempt, int)
    assert_type(event.label, str)


def options_give_a_view(ctx: DeferredContext) -> None:
    """`with_options` gives a context, so that calls chain and keep their types."""
    view = ctx.with_options(
        name="mail", retry=Retry(on=OSError), timeout=2.5, when="success", middleware=[middleware], on_error=error_hook
    )
    assert_type(view, DeferredContext)
    assert_type(view.defer(send, "a@example.org"), TaskHandle[bytes])
    assert_type(ctx.with_options(retry=None, timeout=None, when="always"), DeferredContext)
    assert_type(ctx.with_options(on_error=lambda event: event.error), DeferredContext)


def hooks_of_a_context(ctx: DeferredContext) -> None:
    """`on_error` is a decorator that leaves the function as it is."""

    @ctx.on_error
    def plain(event: TaskFailed) -> None:
        assert_type(event, TaskFailed)

    ctx.on_error(error_hook)
    plain(TaskFailed.__new__(TaskFailed))


async def what_a_context_tells(ctx: DeferredContext) -> None:
    """A context tells its tasks, its names and its report."""
    assert_type(ctx.tasks, tuple[TaskHandle[Any], ...])
    assert_type(ctx.id, str)
    assert_type(ctx.label, str)
    assert_type(await ctx.drained(timeout=1), DrainReport)
    assert_type(current_context(), DeferredContext)
    assert_type(current_task(), TaskHandle[Any] | None)
    with ctx.step("INSERT runners") as nothing:
        assert_type(nothing, None)


class Honours:
    """A retry policy of one's own: anything with these four."""

    timeout = None

    def verdict(self, error: BaseException, /) -> bool:
        """Retry always."""
        return True

    def exhausted(self, attempt: int, elapsed: float, /) -> bool:
        """Never stop."""
        return False

    def delay(self, attempt: int, error: BaseException, /) -> float:
        """Wait a second."""
        return 1.0


async def ask(error: BaseException) -> float:
    """Be an asynchronous predicate."""
    return 1.0


def policies(ctx: DeferredContext) -> None:
    """`Retry(on=...)` takes classes and predicates of every kind; other policies fit by their shape."""
    Retry(on=OSError)
    Retry(on=(OSError, TimeoutError), attempts=None, timeout=None)
    Retry(on=lambda error: isinstance(error, OSError), wait_initial=1, wait_max=2.0, wait_exp_base=3, wait_jitter=0)
    Retry(on=lambda error: timedelta(seconds=1))
    Retry(on=ask)
    ctx.with_options(retry=Honours())
    assert_type(Retry(on=OSError).delay(1), float)
    assert_type(Retry(on=OSError).attempts, int | None)


@asynccontextmanager
async def session(task: TaskHandle[Any]) -> AsyncGenerator[str, None]:
    """Be a task scope."""
    yield task.name


@asynccontextmanager
async def bare_session() -> AsyncGenerator[str, None]:
    """Be a task scope that does not want the task."""
    yield ""


async def a_supervisor() -> None:
    """A supervisor takes what its page says, and is a context manager of itself."""
    supervisor = Supervisor(
        retry=Retry(on=OSError),
        timeout=30,
        max_running=10,
        max_pending=100,
        max_per_context=10,
        overflow="wait",
        drain_timeout=5,
        cancel_grace=1.5,
        out_of_scope="run",
        on_error=error_hook,
        hooks=[hook],
        middleware=[middleware],
        task_scope=session,
        offload=ThreadPoolExecutor(),
        limits={"send": Limit(running=2, pending=None)},
        hook_timeout=2,
        watchdog=0.5,
    )
    Supervisor(on_error=[error_hook, hook], task_scope=bare_session)
    async with supervisor as opened:
        assert_type(opened, Supervisor)
        with opened.context("import of March") as ctx:
            assert_type(ctx, DeferredContext)
        assert_type(opened.stats(), SupervisorStats)
        assert_type(opened.stats().pending, int)
    report = await supervisor.drain(timeout=2)
    assert_type(report.cancelled, tuple[UnfinishedTask, ...])
    assert_type(report.finished, int)
    supervisor.add_hook(hook)
    supervisor.remove_hook(hook)


supervisor = Supervisor()


@supervisor.wrap
async def handle(message: str, *, times: int = 1) -> bytes:
    """Be a wrapped consumer."""
    return message.encode() * times


async def wrapped_functions_keep_their_signature() -> None:
    """`wrap` changes neither arguments nor result."""
    assert_type(await handle("a", times=2), bytes)
    strict = supervisor.wrap(send, strict=True)
    assert_type(await strict("a", copies=1), bytes)


@sequential
async def route(ctx: DeferredContext, number: int) -> str:
    """Be a route that is marked."""
    return str(number)


@concurrent
def plain_route(number: int) -> str:
    """Be a synchronous route that is marked."""
    return str(number)


async def marked_routes_keep_their_signature(ctx: DeferredContext) -> None:
    """The decorators of executions change neither arguments nor result."""
    assert_type(await route(ctx, number=1), str)
    assert_type(plain_route(1), str)
    assert_type(await fire_and_forget(route)(ctx, 1), str)
    assert_type(await deferred(route)(ctx, 1), str)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Be an ASGI app."""


def the_middleware_wraps_any_app() -> None:
    """`DeferredMiddleware` takes an app, and a supervisor or none."""
    DeferredMiddleware(application)
    wrapped = DeferredMiddleware(application, supervisor, lifetime="request")
    assert_type(wrapped.supervisor, Supervisor)
