# mypy: disable-error-code="unused-coroutine"
"""Wrong calls that type checkers refuse; an ignore that nothing needs fails `make types`."""

import asyncio

from deferred import (
    DeferredContext,
    DrainReport,
    Limit,
    Retry,
    Supervisor,
    TaskHandle,
    TaskState,
    defer,
    sequential,
    wait_until,
)
from deferred.integrations.asgi import DeferredMiddleware


async def send(to: str, *, copies: int = 1) -> bytes:
    """Be an async function."""
    return to.encode() * copies


def arguments_are_checked(ctx: DeferredContext) -> None:
    """The arguments of `defer` are those of the function."""
    ctx.defer(send)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    ctx.defer(send, 7)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.defer(send, "a@example.org", copies="two")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.defer(send, "a@example.org", retries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    defer(send)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    defer(send, 7)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.defer()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def functions_are_not_called(ctx: DeferredContext) -> None:
    """`defer` takes the function, not what calling it gives."""
    ctx.defer(send("a@example.org"))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    defer(send("a@example.org"))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.defer(None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.defer("send")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def awaitables_are_called(ctx: DeferredContext) -> None:
    """`wait_until` takes the awaitable, not the function, and nothing else."""
    ctx.wait_until(send)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wait_until(send)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wait_until(lambda: None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wait_until(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wait_until(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.wait_until(send("a@example.org"), send("b@example.org"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def steps_are_checked(ctx: DeferredContext) -> None:
    """`run` checks the arguments of its function as `defer` does."""
    await ctx.run(send, 7)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.run(send("a@example.org"))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def results_have_types(ctx: DeferredContext) -> None:
    """A result is no other type than the function's."""
    wrong: int = await ctx.defer(send, "a@example.org")  # type: ignore[call-overload]  # pyright: ignore[reportAssignmentType]
    other: TaskHandle[str] = ctx.defer(send, "a@example.org")  # type: ignore[call-overload]  # pyright: ignore[reportAssignmentType]
    report: DrainReport = ctx.drained()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    raise ValueError(wrong, other, report)


def options_are_known(ctx: DeferredContext) -> None:
    """`with_options` refuses unknown options and values."""
    ctx.with_options(when="sometimes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.with_options(retries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ctx.with_options(retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.with_options(timeout="1 s")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.with_options(name=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.with_options(on_error=[print, print])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.with_options("mail")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def policies_are_complete() -> None:
    """`Retry` has to be told what to retry, by keyword."""
    Retry()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Retry(OSError)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Retry(on=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(on=OSError, attempts="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(on=OSError, tries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def supervisors_are_checked() -> None:
    """A supervisor refuses unknown settings and values."""
    Supervisor(overflow="explode")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Supervisor(out_of_scope="nowhere")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Supervisor(max_running="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Supervisor(Retry(on=OSError))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Supervisor(limits={"send": 3})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Supervisor(hooks=print)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Supervisor(offload=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Limit(running="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def hooks_take_one_event(ctx: DeferredContext, supervisor: Supervisor) -> None:
    """A hook is a function of one event."""

    def no_event() -> None: ...

    def two(event: object, other: object) -> None: ...

    supervisor.add_hook(no_event)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    supervisor.add_hook(two)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.on_error(no_event)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@sequential
async def route(number: int) -> str:
    """Be a route that is marked."""
    return str(number)


async def decorators_hide_nothing(supervisor: Supervisor) -> None:
    """Decorated functions still check their arguments."""
    await route("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await supervisor.wrap(send)(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    supervisor.wrap(len)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sequential(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def handles_are_read_only(handle: TaskHandle[bytes]) -> None:
    """What a handle tells is not to be set."""
    handle.state = TaskState.FAILED  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    handle.name = "mail"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    await asyncio.sleep(handle.result())  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


def apps_are_apps(app: DeferredMiddleware) -> None:
    """`DeferredMiddleware` wraps an ASGI app."""
    DeferredMiddleware(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    DeferredMiddleware(app, lifetime="forever")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    DeferredMiddleware()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
