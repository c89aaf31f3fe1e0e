"""The promises, and what is particular to it, of FastAPI with `DeferredMiddleware`."""

from contextlib import asynccontextmanager

from fastapi import BackgroundTasks as TheirTasks
from fastapi import Depends, FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.routing import APIRouter

from deferred.integrations.fastapi import DeferredMiddleware, deferred_from, get_context
from tests.integrations.promises import Adapter, Promises
from tests.integrations.raw_app import MARKS
from tests.integrations.script import BoomError


def endpoints(script, given):  # noqa: C901  # one function a route
    """Return the routes of the promises; `given` is what their context depends on."""
    routes = APIRouter(default_response_class=PlainTextResponse)
    ctx = Depends(given)

    @routes.api_route("/plain", methods=["GET", "HEAD"])
    async def plain(ctx=ctx):
        await script.handle(ctx)
        return "plain"

    @routes.post("/body")
    async def body(request: Request, ctx=ctx):
        await request.body()
        script.act(ctx)
        return "body"

    @routes.get("/stream")
    async def stream(ctx=ctx):
        script.act(ctx)
        return StreamingResponse(script.stream(ctx))

    @routes.get("/raises")
    async def raises(ctx=ctx):
        await script.handle(ctx)
        raise BoomError

    @routes.get("/http-error")
    async def http_error(ctx=ctx):
        await script.handle(ctx)
        raise HTTPException(409, "no")

    @routes.get("/redirect")
    async def redirect(ctx=ctx):
        await script.handle(ctx)
        return RedirectResponse("/plain", 303)

    @routes.get("/nothing", status_code=204)
    async def nothing(ctx=ctx):
        await script.handle(ctx)

    @routes.get("/not-modified", status_code=304)
    async def not_modified(ctx=ctx):
        await script.handle(ctx)
        return Response(status_code=304)

    @routes.get("/sync")
    def sync(ctx=ctx):
        script.act(ctx)
        return "sync"

    @routes.get("/own")
    async def own(background: TheirTasks, ctx=ctx):
        async def after():
            script.after(ctx)

        await script.handle(ctx)
        background.add_task(after)
        background.add_task(script.work, "own")
        return "own"

    @routes.get("/own-raises")
    async def own_raises(background: TheirTasks, ctx=ctx):
        async def fails():
            raise BoomError

        await script.handle(ctx)
        background.add_task(fails)
        return "own"

    for name, mark in MARKS.items():

        @routes.get(f"/run/{name}")
        @mark
        async def run(ctx=ctx):
            await ctx.run(script.step)
            return "ran"

    return routes


def sockets(script, given):
    """Return the websockets of the promises."""
    routes = APIRouter()
    ctx = Depends(given)

    @routes.websocket("/socket")
    async def socket(websocket: WebSocket, ctx=ctx):
        await websocket.accept()
        await script.handle(ctx)
        try:
            while (text := await websocket.receive_text()) != "bye":
                if text == "boom":
                    raise BoomError
                await websocket.send_text(text)
        except WebSocketDisconnect:
            return
        await websocket.close()

    @routes.websocket("/refused")
    async def refused(websocket: WebSocket, ctx=ctx):
        await script.handle(ctx)
        await websocket.close(1008)

    return routes


def app_of(script, *, bare, **options):
    """Return an app with all routes of the promises."""

    async def nothing_given():
        return None

    given = nothing_given if bare else get_context

    @asynccontextmanager
    async def lifespan(app):
        script.opening()
        yield
        script.closing()

    app = FastAPI(lifespan=lifespan, openapi_url=None, **options)
    inner = FastAPI(openapi_url=None)

    @app.middleware("http")  # around every route: promises hold behind a `BaseHTTPMiddleware`
    async def defers(request, call_next):
        if request.url.path == "/behind":
            script.act(None if bare else deferred_from(request))
        return await call_next(request)

    @app.get("/behind", response_class=PlainTextResponse)
    async def handler(ctx=Depends(given)):  # noqa: B008  # as FastAPI has it
        await script.handle(ctx)
        return "behind"

    inner.include_router(endpoints(script, given))
    app.include_router(endpoints(script, given))
    app.include_router(sockets(script, given))
    app.mount("/mounted", inner)
    return app


class OutermostAdapter(Adapter):
    """A FastAPI app with the middleware around it."""

    lacks = frozenset({"/listens"})

    def build(self, script, supervisor):
        """Build the app."""
        app = app_of(script, bare=supervisor is None)
        return app if supervisor is None else DeferredMiddleware(app, supervisor)


class MiddlewareAdapter(Adapter):
    """A FastAPI app to which the middleware was added."""

    lacks = frozenset({"/listens"})

    def build(self, script, supervisor):
        """Build the app."""
        app = app_of(script, bare=supervisor is None)
        if supervisor is not None:
            app.add_middleware(DeferredMiddleware, supervisor=supervisor)
        return app


class TestOutermost(Promises):
    """The promises of every framework, with the middleware around the app."""

    adapter = OutermostAdapter()


class TestMiddleware(Promises):
    """The promises of every framework, with the middleware added to the app."""

    adapter = MiddlewareAdapter()
