"""Django under ASGI: its ``get_asgi_application``, with a context for each request and a drain.

Works with Django 4.2 and newer. Django answers no lifespan itself: the wrapper does, and
drains there. Django closes database connections with the request that used them; deferred
work has connections of its own, closed when it ends, and never shares those of a request or
its transaction. Under WSGI there is no event loop to work on, so registering raises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar, cast

import django
import msgspec
from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import close_old_connections, connections
from django.http import HttpRequest, HttpResponse

from deferred._context import DeferredContext
from deferred._current import current_context
from deferred._events import Execution
from deferred._offload import shares_memory
from deferred._supervisor import Supervisor
from deferred._task import TaskHandle
from deferred.exceptions import NoCurrentContextError
from deferred.integrations import asgi
from deferred.integrations._rejection import OVERLOADED, rejection_in, retry_after

__all__ = ["deferred_from", "get_asgi_application"]

P = ParamSpec("P")
T = TypeVar("T")


def get_asgi_application(
    supervisor: Supervisor | None = None, *, lifetime: asgi.Lifetime = "app"
) -> asgi.DeferredMiddleware:
    """Return Django's ASGI application, wrapped; use it in place of Django's own in ``asgi.py``.

    A view whose work is rejected by a limit is answered with 503 and ``Retry-After``, unless
    a middleware of the project has an answer of its own (``process_exception``).

    Args:
        supervisor: The owner of the work; one with default settings when None.
        lifetime: As in `deferred.integrations.asgi.DeferredMiddleware`.

    Example:
        >>> from django.conf import settings
        >>> if not settings.configured:
        ...     settings.configure()
        >>> application = get_asgi_application()
    """
    django.setup(set_prefix=False)
    app = asgi.DeferredMiddleware(cast("asgi.ASGIApp", _Handler()), supervisor, lifetime=lifetime)
    _give_connections(app.supervisor)
    return app


def deferred_from(request: HttpRequest) -> DeferredContext:
    """Return the context of a request.

    Raises:
        NoCurrentContextError: The request came by WSGI, or past our ``get_asgi_application``.
    """
    scope = getattr(request, "scope", None)
    context: DeferredContext | None = None if scope is None else scope.get(asgi.KEY)
    if context is not None:
        return context
    try:
        return current_context()
    except NoCurrentContextError:
        if scope is None:
            message = (
                "this request came by WSGI, where there is no event loop to work on after the response: serve the "
                "project's asgi.py by an ASGI server, such as `uvicorn project.asgi:application`"
            )
        else:
            message = (
                "this request has no context: let asgi.py import `get_asgi_application` from "
                "deferred.integrations.django; in a test, call the view inside `with supervisor.context():`"
            )
        raise NoCurrentContextError(message) from None


class _Handler(ASGIHandler):
    """Django's handler, with an answer to rejected work."""

    def process_exception_by_middleware(self, exception: Exception, request: HttpRequest) -> Any:
        """Ask the project's middleware first."""
        response: Any = super().process_exception_by_middleware(exception, request)
        if response is None and (rejection := rejection_in(exception)) is not None:
            headers = {"Retry-After": retry_after(rejection)}
            return HttpResponse(OVERLOADED, status=503, content_type="text/plain; charset=utf-8", headers=headers)
        return response


def _give_connections(supervisor: Supervisor) -> None:
    """Have each task of `supervisor` use a thread and database connections of its own."""
    launcher = supervisor._launcher
    options = launcher.options
    if _with_connections in options.middleware:
        return
    launcher.options = msgspec.structs.replace(options, middleware=(_with_connections, *options.middleware))
    launcher.plain = False
    if shares_memory(launcher.offload):
        launcher._offload = _Threads(launcher.offload)


async def _with_connections(task: TaskHandle[Any], call_next: Callable[[TaskHandle[Any]], Awaitable[Any]]) -> Any:
    """Run an attempt with a thread of its own for `sync_to_async`: connections belong to threads."""
    if task._execution is Execution.SEQUENTIAL:
        return await call_next(task)  # a part of the request, in its transaction
    own = ThreadSensitiveContext()
    # A synchronous middleware waits for the view, whose calls its thread runs: not those of what outlives it.
    AsyncToSync.executors.current = None
    token = SyncToAsync.thread_sensitive_context.set(own)
    try:
        return await call_next(task)
    finally:
        if own in SyncToAsync.context_to_thread_executor:
            await sync_to_async(connections.close_all)()
            SyncToAsync.context_to_thread_executor.pop(own).shutdown(wait=False)
        SyncToAsync.thread_sensitive_context.reset(token)


class _Threads(Executor):
    """The threads of synchronous tasks, each call with the connections that a request would have."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a thread, without connections that are broken or too old."""

        def call() -> T:
            close_old_connections()
            try:
                return fn(*args, **kwargs)
            finally:
                close_old_connections()

        return self._threads.submit(call)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  # the base class's signature
        """Shut the threads down."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
