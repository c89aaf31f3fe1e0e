"""Litestar: a plugin that injects the context and drains before the app's resources close.

Route middleware never sees the lifespan in Litestar, and ``on_shutdown`` runs after every
lifespan manager has closed: so the plugin opens and drains in a lifespan manager of its own,
which is entered last and left first.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from litestar import Litestar, Request, Response
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.enums import MediaType
from litestar.middleware import ASGIMiddleware
from litestar.plugins import InitPlugin
from litestar.types import ASGIApp, Receive, Scope, Send

from deferred._context import DeferredContext
from deferred._supervisor import Supervisor
from deferred.exceptions import TaskRejectedError
from deferred.integrations import asgi
from deferred.integrations._rejection import OVERLOADED, retry_after
from deferred.integrations._servers import Served
from deferred.integrations.asgi import deferred_from

__all__ = ["DeferredPlugin", "deferred_from"]


class DeferredPlugin(InitPlugin):
    """Give every handler of a Litestar app a context, and drain at shutdown.

    Handlers get it injected under the name of `dependency`, annotated as
    `NamedDependency[DeferredContext]` or plainly `DeferredContext`. A handler whose work is
    rejected by a limit is answered with 503 and ``Retry-After``.

    Args:
        supervisor: The owner of the work; one with default settings when None.
        dependency: The name that handlers get the context by.

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

    def __init__(self, supervisor: Supervisor | None = None, *, dependency: str = "ctx") -> None:
        if not dependency.isidentifier():
            message = f"dependency must be a name that a handler's parameter can have, not {dependency!r}"
            raise ValueError(message)
        self.supervisor: Supervisor = supervisor if supervisor is not None else Supervisor()
        self._dependency = dependency

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware, the dependency, the lifespan and the answer to a rejection."""
        app_config.middleware.insert(0, _Middleware(self.supervisor))
        app_config.dependencies = dict(app_config.dependencies)
        app_config.dependencies.setdefault(self._dependency, Provide(_provide_context, sync_to_thread=False))
        config: Any = app_config  # its own types are generic in what the app stores
        config.lifespan = [*config.lifespan, self._lifespan]
        config.exception_handlers = {TaskRejectedError: _answer_rejection, **config.exception_handlers}
        app_config.signature_namespace.setdefault("DeferredContext", DeferredContext)
        return app_config

    @asynccontextmanager
    async def _lifespan(self, _app: Litestar) -> AsyncGenerator[None, None]:
        async with Served(self.supervisor):
            yield


class _Middleware(ASGIMiddleware):
    """The ASGI middleware in the types that Litestar checks."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Serve one request or websocket."""
        app = asgi.DeferredMiddleware(cast("asgi.ASGIApp", next_app), self._supervisor)
        await app(cast("asgi.Scope", scope), cast("asgi.Receive", receive), cast("asgi.Send", send))


def _provide_context(scope: Scope) -> DeferredContext:
    return deferred_from(cast("asgi.Scope", scope))


def _answer_rejection(_request: Request[Any, Any, Any], error: TaskRejectedError) -> Response[str]:
    return Response(
        OVERLOADED,
        status_code=503,
        media_type=MediaType.TEXT,
        headers={"Retry-After": retry_after(error)},
    )
