"""Litestar: a plugin that injects the context and drains before the app's resources close.

Works with Litestar 2.23 to 2.25, and keeps to names that 3.0 has too, which is no release yet.

Route middleware never sees the lifespan in Litestar, and ``on_shutdown`` runs after every
lifespan manager has closed: so the plugin opens and drains in a lifespan manager of its own,
which is entered last and left first.
"""

from __future__ import annotations

import keyword
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from sys import exception
from typing import TYPE_CHECKING, Any, ParamSpec, cast

from litestar import Litestar, Request, Response, background_tasks
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.enums import MediaType
from litestar.middleware import ASGIMiddleware
from litestar.plugins import CLIPlugin, InitPlugin
from litestar.types import ASGIApp, Receive, Scope, Send

from deferred._call import check_callable
from deferred._context import DeferredContext
from deferred._supervisor import Supervisor
from deferred.exceptions import TaskRejectedError
from deferred.execution import Execution, execution_of
from deferred.integrations import asgi
from deferred.integrations._background import Chain, Work, caller, hand_over
from deferred.integrations._rejection import OVERLOADED, rejection_in, retry_after
from deferred.integrations._servers import Served, owner
from deferred.integrations.asgi import deferred_from

if TYPE_CHECKING:
    from click import Group

__all__ = ["BackgroundTask", "BackgroundTasks", "DeferredPlugin", "deferred_from"]

P = ParamSpec("P")

_CLOSE_OF_AN_ERROR = 4500


class DeferredPlugin(InitPlugin, CLIPlugin):
    """Give every handler of a Litestar app a context, and drain at shutdown.

    Handlers get it injected under the name of `dependency`, annotated as
    `NamedDependency[DeferredContext]` or plainly `DeferredContext`. A handler whose work is
    rejected by a limit is answered with 503 and ``Retry-After``. ``litestar deferred routes``
    shows how each route runs its steps, ``litestar deferred settings`` what its work is limited by.

    Args:
        supervisor: The owner of the work; one with default settings when None.
        dependency: The name that handlers get the context by.
        lifetime: As in `deferred.integrations.asgi.DeferredMiddleware`.

    Raises:
        TypeError: `supervisor` is none.
        ValueError: `dependency` is no name of a parameter, or `lifetime` is unknown.

    Example:
        >>> from litestar import Litestar, get
        >>> from litestar.di import NamedDependency
        >>> from deferred import DeferredContext
        >>> @get("/")
        ... async def index(ctx: NamedDependency[DeferredContext]) -> str:
        ...     ctx.defer(print, "after the answer")
        ...     return "now"
        >>> app = Litestar([index], plugins=[DeferredPlugin()])
    """

    def __init__(
        self,
        supervisor: Supervisor | None = None,
        *,
        dependency: str = "ctx",
        lifetime: asgi.Lifetime = "app",
    ) -> None:
        if not dependency.isidentifier() or keyword.iskeyword(dependency):
            message = f"dependency must be a name that a handler's parameter can have, not {dependency!r}"
            raise ValueError(message)
        self.supervisor: Supervisor = owner(supervisor)
        self._dependency = dependency
        self._middleware = _Middleware(self.supervisor, lifetime)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware, the dependency, the lifespan and the answer to a rejection."""
        app_config.middleware.insert(0, self._middleware)
        app_config.dependencies = dict(app_config.dependencies)
        app_config.dependencies.setdefault(self._dependency, Provide(_provide_context, sync_to_thread=False))
        config: Any = app_config  # its own types are generic in what the app stores
        config.lifespan = [*config.lifespan, self._lifespan]
        config.exception_handlers = {TaskRejectedError: _answer_rejection, **config.exception_handlers}
        app_config.signature_namespace.setdefault("DeferredContext", DeferredContext)
        return app_config

    def on_cli_init(self, cli: Group) -> None:
        """Add ``litestar deferred``."""

        @cli.group("deferred")
        def group() -> None:
            """Background work: how routes run their steps, and what limits it."""

        @group.command("routes")
        def routes(app: Litestar) -> None:
            """Show how each route runs the steps of `ctx.run`."""
            _show(_executions(app))

        @group.command("settings")
        def settings() -> None:
            """Show the limits and times in force."""
            _show(_settings(self.supervisor))

    @asynccontextmanager
    async def _lifespan(self, _app: Litestar) -> AsyncGenerator[None, None]:
        async with Served(self.supervisor):
            yield


class _Middleware(ASGIMiddleware):
    """The ASGI middleware in the types that Litestar checks. Lives as long as its plugin."""

    def __init__(self, supervisor: Supervisor, lifetime: asgi.Lifetime) -> None:
        self._supervisor = supervisor
        self._lifetime: asgi.Lifetime = asgi.check_lifetime(lifetime)
        self._made: dict[ASGIApp, _Answering] = {}  # one for each route handler, not for each request
        self._sockets: dict[ASGIApp, _Answering] = {}  # an app that is mounted may serve both

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Serve one request or websocket."""
        plain = cast("asgi.Scope", scope)
        made = self._made if plain["type"] == "http" else self._sockets
        app = made.get(next_app)
        if app is None:
            inner = cast("asgi.ASGIApp", next_app)
            if made is self._sockets:
                inner = _raising_rejections(inner)
            app = made[next_app] = _Answering(inner, self._supervisor, lifetime=self._lifetime)
        await app(plain, cast("asgi.Receive", receive), cast("asgi.Send", send))


class _Answering(asgi.DeferredMiddleware):
    """The same, where the framework answers for whatever a handler raises."""

    _insists = True


def _raising_rejections(app: asgi.ASGIApp) -> asgi.ASGIApp:
    """Have a rejection leave a websocket's handler as what it is: Litestar closes with 4500 for any error."""

    async def call(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        def send_or_raise(message: asgi.Message) -> Awaitable[None]:
            if message["type"] == "websocket.close" and message.get("code") == _CLOSE_OF_AN_ERROR:
                rejection = rejection_in(exception())
                if rejection is not None:
                    raise rejection
            return send(message)

        await app(scope, receive, send_or_raise)

    return call


def _provide_context(scope: Scope) -> DeferredContext:
    return deferred_from(cast("asgi.Scope", scope))


def _answer_rejection(_request: Request[Any, Any, Any], error: TaskRejectedError) -> Response[str]:
    return Response(
        OVERLOADED,
        status_code=503,
        media_type=MediaType.TEXT,
        headers={"Retry-After": retry_after(error)},
    )


class BackgroundTask(background_tasks.BackgroundTask):
    """Litestar's `BackgroundTask`, run on the context of the request it was sent with.

    It is registered when the response that carries it is out: it is retried as the supervisor's
    default says, its failure is logged and told to the hooks, and the shutdown waits for it.
    Without the plugin it runs as Litestar's own does, and one warning says so. It lives as long
    as its response, or as the route that it was given to.

    Example:
        >>> response = Response("now", background=BackgroundTask(print, "after the answer"))
    """

    __slots__ = ("_func", "_site")

    def __init__(self, fn: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        check_callable(fn, "BackgroundTask")
        super().__init__(fn, *args, **kwargs)
        self._func = fn
        self._site = caller()

    async def __call__(self) -> None:
        """Hand the task over to the context; run it here where there is none."""
        if await hand_over(self._works()):
            await super().__call__()

    def _works(self) -> Iterator[Work]:
        yield Work(self._func, self.args, self.kwargs, self._site)


class BackgroundTasks(background_tasks.BackgroundTasks):
    """Litestar's `BackgroundTasks`, run on the context of the request they were sent with.

    They run one after the other, or all at once with `run_in_task_group`; either way a failure
    stops no other. It lives as long as its response, or as the route that it was given to.

    Example:
        >>> tasks = BackgroundTasks([BackgroundTask(print, "first"), BackgroundTask(print, "second")])
    """

    __slots__ = ()

    def __init__(
        self,
        tasks: Iterable[background_tasks.BackgroundTask],
        run_in_task_group: bool = False,  # noqa: FBT001, FBT002  # as Litestar's own
    ) -> None:
        super().__init__(list(tasks), run_in_task_group)

    async def __call__(self) -> None:
        """Hand the tasks over to the context; run here what it does not take."""
        left = await hand_over(self._works(), None if self.run_in_task_group else Chain())
        if left:
            tasks = [background_tasks.BackgroundTask(work.func, *work.args, **work.kwargs) for work in left]
            await background_tasks.BackgroundTasks(tasks, self.run_in_task_group)()

    def _works(self) -> Iterator[Work]:
        for task in self.tasks:
            call: Any = type(task).__call__
            if isinstance(task, BackgroundTask | BackgroundTasks) and call in _OURS:
                yield from task._works()
            elif call is background_tasks.BackgroundTask.__call__:
                yield Work(task.fn, task.args, task.kwargs)
            else:  # it knows best what calling it does
                yield Work(task)


_OURS = (BackgroundTask.__call__, BackgroundTasks.__call__)


def _executions(app: Litestar) -> Iterator[tuple[str, str, str]]:
    for route in sorted(app.routes, key=lambda route: route.path):
        for handler in getattr(route, "route_handlers", None) or [getattr(route, "route_handler", None)]:
            function = getattr(handler, "fn", None)
            if not getattr(function, "__module__", "litestar").startswith("litestar."):  # not its own pages
                methods = ",".join(sorted(getattr(handler, "http_methods", ()))) or "WEBSOCKET"
                yield methods, route.path, (execution_of(function) or Execution.DEFERRED).value


def _settings(supervisor: Supervisor) -> Iterator[tuple[str, str]]:
    launcher = supervisor._launcher
    slots, options = launcher.slots, launcher.options
    yield "max_running", str(slots.max_running)
    yield "max_pending", str(launcher.max_pending)
    yield "max_per_context", str(launcher.max_per_context)
    yield "overflow", launcher.overflow
    for name, named in slots._named.items():
        yield f"limits[{name!r}]", str(named.limit)
    yield "retry", str(options.retry)
    yield "timeout", "None" if options.timeout is None else f"{options.timeout:g} s"
    yield "drain_timeout", f"{launcher.timeout:g} s"
    yield "cancel_grace", f"{launcher.grace:g} s"


def _show(rows: Iterable[tuple[str, ...]]) -> None:
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201  # it talks to a terminal
