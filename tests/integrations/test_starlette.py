"""The promises, and what is particular to it, of Starlette with `DeferredMiddleware`."""

from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.background import BackgroundTask as TheirTask
from starlette.background import BackgroundTasks as TheirTasks
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from deferred.integrations.starlette import DeferredMiddleware, deferred_from
from tests.integrations.promises import Adapter, Promises
from tests.integrations.raw_app import MARKS
from tests.integrations.script import BoomError


def endpoints(script, context):  # noqa: C901  # one function a route
    """Return the routes of the promises that a plain HTTP handler can serve."""

    async def plain(request):
        await script.handle(context(request))
        return PlainTextResponse("plain")

    async def body(request):
        await request.body()
        script.act(context(request))
        return PlainTextResponse("body")

    async def stream(request):
        script.act(context(request))
        return StreamingResponse(script.stream(context(request)))

    async def raises(request):
        await script.handle(context(request))
        raise BoomError

    async def http_error(request):
        await script.handle(context(request))
        raise HTTPException(409, "no")

    async def redirect(request):
        await script.handle(context(request))
        return RedirectResponse("/plain", 303)

    async def nothing(request):
        await script.handle(context(request))
        return Response(status_code=204)

    async def not_modified(request):
        await script.handle(context(request))
        return Response(status_code=304)

    def sync(request):
        script.act(context(request))
        return PlainTextResponse("sync")

    async def own(request):
        ctx = context(request)

        async def after():
            script.after(ctx)

        await script.handle(ctx)
        return PlainTextResponse("own", background=TheirTasks([TheirTask(after), TheirTask(script.work, "own")]))

    async def own_raises(request):
        async def fails():
            raise BoomError

        await script.handle(context(request))
        return PlainTextResponse("own", background=TheirTask(fails))

    def running(mark):
        @mark
        async def run(request):
            await context(request).run(script.step)
            return PlainTextResponse("ran")

        return run

    handlers = (plain, stream, raises, http_error, redirect, nothing, not_modified, sync, own, own_raises)
    return [
        *(Route(f"/{handler.__name__.replace('_', '-')}", handler) for handler in handlers),
        *(Route(f"/run/{name}", running(mark)) for name, mark in MARKS.items()),
        Route("/body", body, methods=["POST"]),
    ]


def behind(script, context):
    """Return ``/behind``: an app behind a `BaseHTTPMiddleware`, which defers as well."""

    async def plain(request):
        await script.handle(context(request))
        return PlainTextResponse("behind")

    async def dispatch(request, call_next):
        script.act(context(request))
        return await call_next(request)

    return Route("/behind", BaseHTTPMiddleware(Route("/behind", plain).app, dispatch))


def sockets(script, context):
    """Return the websockets of the promises."""

    async def socket(websocket):
        await websocket.accept()
        await script.handle(context(websocket))
        async for text in websocket.iter_text():
            if text == "boom":
                raise BoomError
            if text == "bye":
                await websocket.close()
                return
            await websocket.send_text(text)

    async def refused(websocket):
        await script.handle(context(websocket))
        await websocket.close(1008)

    return [WebSocketRoute("/socket", socket), WebSocketRoute("/refused", refused)]


def routes_of(script, *, bare):
    """Return all routes of the promises."""

    def context(connection):
        return None if bare else deferred_from(connection)

    inner = Starlette(routes=endpoints(script, context))
    return [
        *endpoints(script, context),
        behind(script, context),
        *sockets(script, context),
        Mount("/mounted", inner),
    ]


def lifespan_of(script):
    """Return the lifespan that opens and closes the app's own resource."""

    @asynccontextmanager
    async def lifespan(app):
        script.opening()
        yield
        script.closing()

    return lifespan


class OutermostAdapter(Adapter):
    """A Starlette app with the middleware around it."""

    lacks = frozenset({"/listens"})

    def build(self, script, supervisor):
        """Build the app."""
        app = Starlette(routes=routes_of(script, bare=supervisor is None), lifespan=lifespan_of(script))
        return app if supervisor is None else DeferredMiddleware(app, supervisor)


class MiddlewareAdapter(Adapter):
    """A Starlette app with the middleware in its list, before a `BaseHTTPMiddleware`."""

    lacks = frozenset({"/listens"})

    def build(self, script, supervisor):
        """Build the app."""
        middleware = [] if supervisor is None else [Middleware(DeferredMiddleware, supervisor=supervisor)]
        return Starlette(
            routes=routes_of(script, bare=supervisor is None), lifespan=lifespan_of(script), middleware=middleware
        )


class TestOutermost(Promises):
    """The promises of every framework, with the middleware around the app."""

    adapter = OutermostAdapter()


class TestMiddleware(Promises):
    """The promises of every framework, with the middleware in the app's list."""

    adapter = MiddlewareAdapter()
