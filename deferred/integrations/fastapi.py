"""FastAPI: the middleware, the context as a dependency, and background tasks that run on it.

Works with FastAPI 0.108 to 0.165. The middleware is added as in `deferred.integrations.starlette`;
handlers, dependencies and websockets ask for their context by annotation, or for background
tasks, which they get injected as FastAPI's own::

    app = FastAPI()
    app.add_middleware(DeferredMiddleware, supervisor=supervisor)

    @app.post("/runners")
    async def register(ctx: Deferred, background: BackgroundTasks) -> str: ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import fastapi
from fastapi import Depends
from fastapi.requests import HTTPConnection
from starlette import background

from deferred._context import DeferredContext
from deferred.integrations import starlette
from deferred.integrations.starlette import BackgroundTask, DeferredMiddleware, deferred_from

__all__ = ["BackgroundTask", "BackgroundTasks", "Deferred", "DeferredMiddleware", "deferred_from", "get_context"]


async def get_context(connection: HTTPConnection) -> DeferredContext:
    """Give a handler or a dependency the context of its request or websocket; a dependency.

    It is asynchronous so that it costs no thread.

    Raises:
        NoCurrentContextError: The app has no `DeferredMiddleware`.

    Example:
        >>> from fastapi import APIRouter
        >>> router = APIRouter(dependencies=[Depends(get_context)])  # refuse to serve without it
    """
    return deferred_from(connection)


Deferred: TypeAlias = Annotated[DeferredContext, Depends(get_context)]
"""What a parameter is annotated with to be given the context: ``async def handler(ctx: Deferred)``."""


class _BackgroundTasks(starlette.BackgroundTasks, fastapi.BackgroundTasks):
    """FastAPI's `BackgroundTasks`, run on the context of the request; lives as long as that.

    Annotate a parameter with it and FastAPI injects one, the same one throughout a request. As
    with FastAPI's own, its tasks belong to the response that the handler returns: they do not
    run when it raises, or returns a response with a background of its own. What is to run
    whatever happens goes to ``ctx.defer``.
    """


async def _provide(carrier: fastapi.BackgroundTasks) -> _BackgroundTasks:
    # FastAPI makes its own class for any parameter that is annotated with a subclass of it. It
    # puts that one on the response, so it carries ours: first, for a failing one of its own
    # tasks would keep ours from being handed over.
    tasks = _BackgroundTasks()
    carrier.tasks.insert(0, background.BackgroundTask(tasks))
    return tasks


def _make(tasks: Sequence[background.BackgroundTask] | None = None) -> _BackgroundTasks:
    return _BackgroundTasks(tasks)


if TYPE_CHECKING:
    BackgroundTasks: TypeAlias = _BackgroundTasks
else:
    # FastAPI injects what an annotation depends on, and calling it makes one. It annotates no
    # class of ours: FastAPI took no dependency for any of its own special classes until lately.
    BackgroundTasks = Annotated[_make, Depends(_provide)]
