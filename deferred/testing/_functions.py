"""What a test calls without a fixture: contexts, waiting, clients."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from deferred._context import DeferredContext
from deferred._retry import seconds
from deferred._supervisor import Supervisor
from deferred.testing._client import open_aiohttp_client, open_client
from deferred.testing._context import TestContext
from deferred.testing._diversion import Mode, conductors_of
from deferred.testing._kit import TIMEOUT, Backoff, Kit
from deferred.testing._lifespan import App

if TYPE_CHECKING:  # it loads httpx
    from deferred.testing._http import Client

__all__ = ["aiohttp_client", "client", "create_context", "wait_on_context"]


def create_context(
    mode: Mode = "run",
    *,
    label: str = "test",
    backoff: Backoff = "skip",
    timeout: float = TIMEOUT,
    supervisor: Supervisor | None = None,
) -> TestContext:
    """Make a context to hand to the code under test; then ``await wait_on_context(ctx)``.

    As a context manager it is the current context, which `deferred.defer` finds, and waits for
    itself: ``async with create_context() as ctx:``, or ``with`` in a synchronous test. Its
    ``kit`` has the assertions, the captured work and the faults.

    Args:
        mode: ``"run"``, ``"inline"`` or ``"capture"``; see `Kit`.
        label: What errors and reports call it.
        backoff: ``"skip"`` or ``"wait"``: whether waits between attempts take time; see `Kit`.
        timeout: Seconds that leaving the context manager waits for the work.
        supervisor: Whose context it is; one with default settings when None.

    Example:
        >>> import asyncio
        >>> from deferred import defer
        >>> async def register(address):
        ...     defer(asyncio.sleep, 0)
        >>> async def test_register():
        ...     async with create_context() as ctx:
        ...         await register("runner@example.org")
        ...     ctx.kit.assert_deferred(asyncio.sleep, 0)
        >>> asyncio.run(test_register())
    """
    return Kit(mode, backoff=backoff, timeout=timeout).context(label, supervisor=supervisor)


async def wait_on_context(ctx: DeferredContext, timeout: float = TIMEOUT) -> None:
    """Close a context and wait until all of its work has ended, what it registers included.

    What is not done in time is cancelled, with all that it registers as it goes; a
    `UnfinishedWorkWarning` names it and says where it was deferred. So it does with asyncio
    tasks that the work has started by itself, which nobody waits for.

    Args:
        ctx: A context of `create_context`; one of an app or a supervisor as well, though errors
            from before the call are only known where the fixture or a kit watches.
        timeout: Seconds to wait at the most.

    Raises:
        TypeError: `ctx` is no context.
        BaseException: What the work has raised: one error as itself, the very object; several
            as an ExceptionGroup. Each is raised once.

    Example:
        >>> import asyncio
        >>> async def fail():
        ...     raise OSError("no route")
        >>> async def test_failure():
        ...     ctx = create_context()
        ...     ctx.defer(fail)
        ...     try:
        ...         await wait_on_context(ctx)
        ...     except OSError as error:
        ...         return str(error)
        >>> asyncio.run(test_failure())
        'no route'
    """
    __tracebackhide__ = True
    if not isinstance(ctx, DeferredContext):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
        message = (
            f"wait_on_context() takes a DeferredContext, such as create_context() makes, not a {type(ctx).__name__}"
        )
        raise TypeError(message)
    limit = seconds(timeout, "timeout", zero=True)
    if isinstance(ctx, TestContext):
        await ctx.finish(limit, stacklevel=2)
        return
    root: Any = ctx._root or ctx
    launcher = root._host
    watching = [kit for kit in conductors_of(launcher) if isinstance(kit, Kit)]
    kit = watching[-1] if watching else Kit()
    if not watching:
        kit.watch(launcher.owner(), from_now=False)
    try:
        root.close()
        await kit.settle(limit, root)
        kit.findings.warn(root, limit, stacklevel=2)
        kit.findings.raise_errors(root)
    finally:
        if not watching:
            kit.release()


@asynccontextmanager
async def client(app: App, **options: Any) -> AsyncGenerator[Client, None]:
    """Start an ASGI app of any framework and give a client of it that does not wait for deferred work.

    The client is an `httpx.AsyncClient` with two more attributes: ``await client.wait()`` waits
    for all deferred work and raises what it has raised, ``client.kit`` has the assertions. When
    it is left, the work is waited for, and what was raised unnoticed is raised; then the
    app's lifespan is ended.

    Args:
        app: The ASGI app: Starlette, FastAPI, Litestar, Quart, Django or any other.
        **options: Keyword arguments of `httpx.AsyncClient`, and ``raise_app_exceptions=False``
            to be answered 500 where a handler raises.

    Raises:
        RuntimeError: The app's start, or its shutdown, has failed.
        TypeError: It is no ASGI app.

    Example:
        >>> import asyncio
        >>> from deferred import defer
        >>> from deferred.integrations.asgi import DeferredMiddleware
        >>> async def app(scope, receive, send):
        ...     defer(asyncio.sleep, 0)
        ...     await send({"type": "http.response.start", "status": 204, "headers": []})
        ...     await send({"type": "http.response.body", "body": b""})
        >>> async def test_app():
        ...     async with client(DeferredMiddleware(app)) as http:
        ...         response = await http.get("/")
        ...         await http.wait()
        ...     return response.status_code
        >>> asyncio.run(test_app())
        204
    """
    with Kit() as kit:
        async with open_client(app, kit, **options) as made:
            yield made
        kit.findings.warn(None, kit.timeout, stacklevel=2)
        kit.findings.raise_errors()


@asynccontextmanager
async def aiohttp_client(app: Any, **options: Any) -> AsyncGenerator[Any, None]:
    """Start an aiohttp app and give aiohttp's own ``TestClient`` of it.

    When it is left, deferred work is waited for, and what was raised unnoticed is raised; then
    the app is stopped.

    Args:
        app: The `aiohttp.web.Application`.
        **options: Keyword arguments of `aiohttp.test_utils.TestClient`.
    """
    with Kit() as kit:
        async with open_aiohttp_client(app, kit, **options) as made:
            yield made
        kit.findings.warn(None, kit.timeout, stacklevel=2)
        kit.findings.raise_errors()
